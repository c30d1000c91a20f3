"""Archives for PASCAL VOC's evaluation server: segmentation, competition 6 (trained on any data)."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from exfuse.data.classes import voc_classes, voc_palette
from exfuse.data.files import inside, read_names
from exfuse.data.image_files import open_image
from exfuse.data.pixels import to_indices
from exfuse.data.samples import UInt8Array, read_image
from exfuse.errors import DataError, brief, shown
from exfuse.outputs.file import new_file
from exfuse.predictor import Predictor

VOC_FOLDER = "results/VOC2012/Segmentation/comp6_{split}_cls"


@dataclass(frozen=True)
class UnlabelledImage:
    """An image without a mask.

    Attributes:
        name: Image ID.
        path: Image file.
    """

    name: str
    path: Path


def voc_test_images(root: Path, split: str) -> tuple[UnlabelledImage, ...]:
    """Returns the images of a split of a VOC folder; masks are not needed.

    Args:
        root: The folder `VOC2012`.
        split: For example "test".

    Raises:
        DataError: If the list or an image is missing.
    """
    path = inside(root / "ImageSets" / "Segmentation", f"{split}.txt")
    names = [name for _, name in read_names(path)]
    if not names:
        raise DataError(f"{path}: lists no images")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path}: lists {shown(name)} more than once")
    if elsewhere := [name for name in names if name != Path(name).name]:
        raise DataError(f"{path}: {shown(elsewhere[0])} is not an image name")
    images = tuple(UnlabelledImage(name, inside(root / "JPEGImages", f"{name}.jpg")) for name in names)
    for image in images:
        if not image.path.is_file():
            raise DataError(f"{image.path}: no such image, although {path.name} lists it")
    return images


def write_voc_submission(
    predictor: Predictor,
    images: tuple[UnlabelledImage, ...],
    split: str,
    archive: Path,
    progress: Callable[[], None] = lambda: None,
) -> Path:
    """Segments all images and writes the archive; it gets its final name only when it is complete and checked.

    Args:
        predictor: A model with VOC's 21 classes.
        images: The images of the split.
        split: Name of the split.
        archive: The `.tgz` file to write.
        progress: Called after each image.

    Returns:
        The path of the archive; see `new_file`.

    Raises:
        DataError: If the model has other classes or colours, an image is invalid, or the archive fails its check.
    """
    info, classes = predictor.info, voc_classes()
    if info.class_names != classes.names:
        raise DataError(f"the model's {len(info.class_names)} classes are not VOC's 21; use a model trained on VOC")
    if info.palette != classes.palette:
        raise DataError("the model's palette is not VOC's, which the server requires; correct it in its config.json")
    with new_file(archive) as placed:
        with tarfile.open(fileobj=placed.file, mode="w:gz") as tar:
            for image in images:
                buffer = io.BytesIO()
                predictor(image.path).mask().save(buffer, format="PNG")
                entry = tarfile.TarInfo(f"{VOC_FOLDER.format(split=split)}/{image.name}.png")
                entry.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(entry, buffer)
                progress()
        placed.file.flush()
        check_voc_submission(Path(placed.file.name), images, split)
    return placed.path


def check_voc_submission(archive: Path, images: tuple[UnlabelledImage, ...], split: str) -> None:
    """Reads an archive and checks that it meets the requirements of the server.

    The archive must contain one indexed 8-bit PNG per image and nothing else, in the right folder, at the image's size,
    with VOC's colours and labels 0 to 20.

    Args:
        archive: The file.
        images: The images of the split.
        split: Name of the split.

    Raises:
        DataError: If an entry is missing, invalid or unexpected; the message contains the first one.
    """
    expected = {f"{VOC_FOLDER.format(split=split)}/{image.name}.png": image for image in images}
    palette = np.array(voc_palette(21), dtype=np.uint8)
    seen = set()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if entry.isdir():
                    continue
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is None or entry.name not in expected or entry.name in seen:
                    raise DataError(f"{archive}: unexpected entry {entry.name}")
                _check_mask(f"{archive}: {entry.name}", content, expected[entry.name], palette)
                seen.add(entry.name)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: unreadable archive ({brief(error)})") from error
    missing = sorted(set(expected) - seen)
    if missing:
        raise DataError(f"{archive}: {len(missing)} images are missing, the first is {missing[0]}")


def _check_mask(where: str, file: IO[bytes], image: UnlabelledImage, palette: UInt8Array) -> None:
    with open_image(file, kind="PNG", name=where) as mask:
        if mask.format != "PNG" or mask.mode != "P":
            raise DataError(f"{where}: not an indexed PNG, its mode is {mask.mode}")
        labels, colors = to_indices(mask, where), mask.getpalette() or []
    if labels.shape != read_image(image.path).shape[:2]:
        raise DataError(f"{where}: {labels.shape[1]} x {labels.shape[0]} pixels, but the image has another size")
    if labels.max() > 20:
        raise DataError(f"{where}: contains label {labels.max()}; classes are 0 to 20")
    used = int(labels.max()) + 1
    if not np.array_equal(np.array(colors, dtype=np.uint8).reshape(-1, 3)[:used], palette[:used]):
        raise DataError(f"{where}: its palette is not VOC's")
