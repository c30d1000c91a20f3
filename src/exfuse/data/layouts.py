"""The layouts people keep labelled images in: how each is recognised, where its files are, what its labels mean."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exfuse.data.classes import CITYSCAPES, CITYSCAPES_IDS, Classes, Color, numbered_classes, voc_classes, voc_palette
from exfuse.data.files import image_files, inside, read_names, read_text
from exfuse.data.samples import IMAGE_SUFFIXES, UInt8Array, read_mask
from exfuse.errors import DataError, brief, did_you_mean, shown, without_path
from exfuse.validation import describe

Byte = Annotated[int, Field(ge=0, le=255)]
Layout = Literal["lists", "folders", "voc", "cityscapes", "ade20k"]
OnMissing = Callable[[DataError], None]

# Folders of images and of masks; then where the lists of the splits are, or the splits are folders in both.
FOLDERS_OF_LISTS = {
    "lists": ("images", "masks", "."),
    "voc": ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
}
FOLDERS_OF_SPLITS = {
    "folders": ("images", "masks"),
    "cityscapes": ("leftImg8bit", "gtFine"),
    "ade20k": ("images", "annotations"),
}
CITYSCAPES_IMAGE = "_leftImg8bit.png"
MASK_SUFFIX = ".png"
CLASSES_FILE = "classes.json"
MAX_HINTS = 1000  # lists among which one is looked for whose name is like a missing one's
MISSING_LABELS = 64  # that masks may lack of those up to their largest, where nobody says how many classes there are
_UPPER_SUFFIXES = tuple(suffix.upper() for suffix in IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Entry:
    """Where one labelled image lies.

    Attributes:
        name: Identifier within the split, without a suffix.
        image: Path of the image.
        mask: Path of the mask.
    """

    name: str
    image: Path
    mask: Path


def recognise_layout(root: Path, split: str) -> Layout:
    """Returns the layout of a folder by what lies in it.

    Raises:
        DataError: If it is none of them.
    """
    if (root / "JPEGImages").is_dir():
        return "voc"
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    if (root / "annotations" / split).is_dir():
        return "ade20k"
    if (root / "images" / split).is_dir():
        return "folders"
    if (root / "images").is_dir() and any(root.glob("*.txt")):
        return "lists"
    name = brief(split, limit=80)
    raise DataError(
        f"{root}: no data set found for split {shown(split)}. Expected images/, masks/ and {name}.txt; "
        f"or images/{name}/ and masks/{name}/; "
        f"or PASCAL VOC's JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{name}.txt; "
        f"or Cityscapes' leftImg8bit/{name}/ and gtFine/{name}/; or ADE20K's images/ and annotations/{name}/; "
        "or give a dataset file (.yaml)"
    )


def stop(error: DataError) -> None:
    """Raises the error: what to do about a missing file unless all of them are looked for."""
    raise error


def find_entries(
    root: Path, layout: Layout, split: str, split_source: str, missing: OnMissing = stop
) -> tuple[Entry, ...]:
    """Returns a split's images and masks in their stored order.

    Args:
        root: Folder of the data set.
        layout: How it lies there.
        split: The split's name.
        split_source: Its list file or its folder.
        missing: Called for each file that is not there or is named twice; if it returns, the image is left out.

    Raises:
        DataError: If a file is missing or named twice, or the split has no images.
    """
    absent: list[DataError] = []

    def note(error: DataError) -> None:
        missing(error)
        absent.append(error)

    if layout in ("lists", "voc"):
        images, masks, lists = FOLDERS_OF_LISTS[layout]
        name = split_source if layout == "lists" else f"{split_source}.txt"
        found = _images_of_list(root / images, inside(root / lists, name), note)
        folder = root / masks
    else:
        images, masks = FOLDERS_OF_SPLITS[layout]
        found = _images_of_folder(inside(root / images, split_source), layout, note)
        folder = inside(root / masks, split_source)
    entries = tuple(_with_masks(found, folder, note))
    if not entries and not absent:
        raise DataError(f"{root}: split {shown(split)} has no images")
    return entries


def _images_of_folder(images: Path, layout: Layout, missing: OnMissing) -> Iterator[tuple[str, Path, str]]:
    """Yields the name, the path and the name of the mask of each image in a folder."""
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    for path in image_files(images):
        name = path.relative_to(images).as_posix()
        if not path.exists():
            missing(DataError(f"{path}: a broken link"))
        elif layout != "cityscapes":
            name = name.removesuffix(path.suffix)
            yield name, path, name
        elif name.endswith(CITYSCAPES_IMAGE):
            name = name.removesuffix(CITYSCAPES_IMAGE)
            yield name, path, f"{name}_gtFine_labelIds"


def _images_of_list(images: Path, list_path: Path, missing: OnMissing) -> Iterator[tuple[str, Path, str]]:
    """Yields the same for each image that a list names."""
    if not list_path.exists():
        others = [path.stem for path in islice(list_path.parent.glob("*.txt"), MAX_HINTS)]
        hint = did_you_mean(list_path.stem, others)
        raise DataError(f"{list_path}: not a readable list of images (No such file or directory); {hint}")
    for number, name in read_names(list_path):
        line = f"{list_path}: line {number}"
        try:
            inside(images, name)
            image = next((path for path in _with_suffixes(images, name) if path.is_file()), None)
        except (OSError, DataError) as error:
            raise DataError(f"{line}: {without_path(error)}") from error
        if image is not None:
            yield name, image, name
        elif broken := next((path for path in _with_suffixes(images, name) if path.is_symlink()), None):
            missing(DataError(f"{line}: {broken} is a broken link"))
        else:
            hint = "; names stand there without their suffix" if Path(name).suffix.lower() in IMAGE_SUFFIXES else ""
            missing(DataError(f"{line}: no image named {shown(name)} in {images}{hint}"))


def _with_suffixes(folder: Path, name: str) -> Iterator[Path]:
    """Yields where an image may lie, in the order in which it is looked for."""
    for suffix in (*IMAGE_SUFFIXES, *_UPPER_SUFFIXES):
        yield folder / f"{name}{suffix}"


def _with_masks(found: Iterable[tuple[str, Path, str]], masks: Path, missing: OnMissing) -> Iterator[Entry]:
    """Adds the masks to images given by name, path and name of the mask."""
    seen: dict[str, Path] = {}
    for name, image, of_mask in found:
        if not seen and not masks.is_dir():
            missing(DataError(f"{masks}: no such folder; the masks are looked for there"))
            return
        if name in seen:
            missing(
                DataError(f"{image}: {shown(name)} is in the split already, as {seen[name]}; each image counts once")
            )
            continue
        seen[name] = image
        mask = masks / f"{of_mask}{MASK_SUFFIX}"
        if mask.is_file():
            yield Entry(name, image, mask)
        elif mask.is_symlink():
            missing(DataError(f"{mask}: a broken link"))
        else:
            other = next((path.name for path in _with_suffixes(masks, of_mask) if path.is_file()), None)
            hint = f"; there is {other}, but masks are {MASK_SUFFIX} files" if other else ""
            missing(DataError(f"{mask}: no such mask{hint}"))


def find_classes(root: Path, layout: Layout) -> Classes:
    """Returns the classes of a folder: those of `classes.json`, the layout's own, or the labels found in the masks.

    Raises:
        DataError: If a description cannot be read, or masks without one hold 0 and 255 only, or lack more than
            `MISSING_LABELS` of the labels up to the largest.
    """
    described = root / CLASSES_FILE
    if described.is_file():
        return read_classes(described)
    if layout == "voc":
        return voc_classes()
    if layout == "cityscapes":
        return CITYSCAPES
    if layout == "ade20k":
        return read_ade20k_classes(root / "objectInfo150.txt")
    first_with: dict[int, Path] = {}
    masks = root / "masks"
    for path in image_files(masks) if masks.is_dir() else ():
        if path.suffix != MASK_SUFFIX:
            continue
        with suppress(DataError):  # a mask that cannot be read is found, and named, with whatever else is read
            for label in np.unique(read_mask(path)).tolist():
                first_with.setdefault(label, path)
    labels = set(first_with)
    if labels == {0, 255}:
        raise DataError(
            f"{masks}: the masks hold 0 and 255 only, and 255 is ignored: nothing is left to tell apart. If "
            "255 is your second class, describe the data in a YAML file with label_map: {255: 1} (docs/data.md)"
        )
    classes = sorted(labels - {255})
    count = max(classes, default=0) + 1
    if count - len(classes) > MISSING_LABELS:
        others = f"only {', '.join(map(str, classes[:-1]))}" if len(classes) > 1 else "none"
        raise DataError(
            f"{first_with[classes[-1]]}: has the label {classes[-1]}, and of those below it the masks hold {others}. "
            "If it is a mistake, correct the masks; else say in classes.json, or by the label_map of a YAML file, what "
            "the labels mean (docs/data.md)"
        )
    return numbered_classes(max(count, 2))


def own_label_map(root: Path, layout: Layout) -> UInt8Array | None:
    """Returns what the values stored in a folder's masks mean, 256 entries; None where they are the classes.

    Cityscapes' masks hold 34 ids, of which 19 are classes; ADE20K's hold 0 for none and then the classes from 1. Where
    `classes.json` names the classes, its ids are the values stored, in any layout.
    """
    if (root / CLASSES_FILE).is_file():
        return None
    label_map = np.full(256, 255, dtype=np.uint8)
    if layout == "cityscapes":
        label_map[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
        return label_map
    if layout == "ade20k":
        label_map[1:151] = np.arange(150)
        return label_map
    return None


def read_ade20k_classes(path: Path) -> Classes:
    """Reads the names of the 150 classes from the table that comes with ADE20K.

    Raises:
        DataError: If it cannot be read or has other than 150 rows.
    """
    try:
        rows = [line.split("\t") for line in read_text(path).splitlines()[1:] if line.strip()]
        names = tuple(row[4].strip() for row in rows)
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{path}: not ADE20K's table of classes ({without_path(error)})") from error
    if len(names) != 150:
        raise DataError(f"{path}: {len(names)} classes instead of 150")
    return _checked_classes(path, names, voc_palette(150))


class ClassRow(BaseModel):
    """A class in `classes.json`."""

    model_config = ConfigDict(strict=True)

    id: int
    name: str
    color: Annotated[list[Byte], Field(min_length=3, max_length=3)]


class ClassesFile(BaseModel):
    """What `classes.json` holds; other keys are passed over."""

    model_config = ConfigDict(strict=True)

    classes: list[ClassRow]
    ignore_index: Byte = 255


def read_classes(path: Path) -> Classes:
    """Reads `classes.json`: a list `classes` of objects with `id`, `name` and `color`, and `ignore_index`.

    Raises:
        DataError: If it cannot be read or lacks one of these.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable list of classes ({without_path(error)})") from error
    try:
        described = ClassesFile.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {brief(describe(error, ClassesFile))}") from error
    rows = sorted(described.classes, key=lambda row: row.id)
    if [row.id for row in rows] != list(range(len(rows))):
        raise DataError(f"{path}: the ids must be 0, 1, 2 and so on")
    palette = tuple((red, green, blue) for red, green, blue in (row.color for row in rows))
    return _checked_classes(path, tuple(row.name for row in rows), palette, described.ignore_index)


def _checked_classes(
    path: Path, names: tuple[str, ...], palette: tuple[Color, ...], ignore_index: int = 255
) -> Classes:
    try:
        return Classes(names, palette, ignore_index)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
