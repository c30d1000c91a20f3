"""The layouts people keep labelled images in: how each is recognised, where its files are, what its labels mean."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from exfuse.data.classes import CITYSCAPES, CITYSCAPES_IDS, Classes, numbered_classes, voc_classes, voc_palette
from exfuse.data.samples import IMAGE_SUFFIXES, UInt8Array, read_mask
from exfuse.errors import DataError, did_you_mean, without_path

Layout = Literal["lists", "folders", "voc", "cityscapes", "ade20k"]
OnMissing = Callable[[DataError], None]

CITYSCAPES_IMAGE = "_leftImg8bit.png"
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
    raise DataError(
        f"{root}: no data set found for split {split!r}. Expected images/, masks/ and {split}.txt; "
        f"or images/{split}/ and masks/{split}/; "
        f"or PASCAL VOC's JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{split}.txt; "
        f"or Cityscapes' leftImg8bit/{split}/ and gtFine/{split}/; or ADE20K's images/ and annotations/{split}/; "
        "or give a dataset file (.yaml)"
    )


def stop(error: DataError) -> None:
    """Raises the error: what to do about a missing file unless all of them are looked for."""
    raise error


def find_entries(
    root: Path, layout: Layout, split: str, split_place: str, missing: OnMissing = stop
) -> tuple[Entry, ...]:
    """Returns a split's images and masks in their stored order.

    Args:
        root: Folder of the data set.
        layout: How it lies there.
        split: The split's name.
        split_place: Its list file or its folder.
        missing: Called for each file that is not there or is named twice; if it returns, the image is left out.

    Raises:
        DataError: If a file is missing or named twice, or the split has no images.
    """
    absent: list[DataError] = []

    def note(error: DataError) -> None:
        missing(error)
        absent.append(error)

    if layout in ("folders", "ade20k"):
        masks_folder = "masks" if layout == "folders" else "annotations"
        entries = _entries_of_folders(
            inside(root, f"images/{split_place}"), inside(root, f"{masks_folder}/{split_place}"), note
        )
    elif layout == "cityscapes":
        entries = _entries_of_cityscapes(
            inside(root, f"leftImg8bit/{split_place}"), inside(root, f"gtFine/{split_place}"), note
        )
    else:
        images, masks, names = root / "images", root / "masks", inside(root, split_place)
        if layout == "voc":
            images, masks = root / "JPEGImages", root / "SegmentationClass"
            names = inside(root, f"ImageSets/Segmentation/{split_place}.txt")
        entries = _entries_of_list(images, masks, names, note)
    if not entries and not absent:
        raise DataError(f"{root}: split {split!r} has no images")
    return entries


def _entries_of_folders(images: Path, masks: Path, missing: OnMissing) -> tuple[Entry, ...]:
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    names = [path.relative_to(images).with_suffix("").as_posix() for path in paths]
    return _with_masks([(name, path, name) for name, path in zip(names, paths, strict=True)], masks, missing)


def _entries_of_cityscapes(images: Path, masks: Path, missing: OnMissing) -> tuple[Entry, ...]:
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    found = []
    for image in sorted(images.glob(f"*/*{CITYSCAPES_IMAGE}")):
        name = f"{image.parent.name}/{image.name.removesuffix(CITYSCAPES_IMAGE)}"
        found.append((name, image, f"{name}_gtFine_labelIds"))
    return _with_masks(found, masks, missing)


def _entries_of_list(images: Path, masks: Path, list_path: Path, missing: OnMissing) -> tuple[Entry, ...]:
    try:
        lines = list_path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        others = [path.stem for path in list_path.parent.glob("*.txt")]
        hint = "" if list_path.exists() else f"; {did_you_mean(list_path.stem, others)}"
        raise DataError(f"{list_path}: not a readable list of images ({without_path(error)}){hint}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        try:
            candidates = [inside(images, name + end) for end in (*IMAGE_SUFFIXES, *_UPPER_SUFFIXES)]
            image = next((path for path in candidates if path.is_file()), None)
        except (OSError, ValueError, DataError) as error:
            raise DataError(f"{list_path}: line {number}: {error}") from error
        if image is None:
            missing(DataError(f"{list_path}: line {number}: no image named {name!r} in {images}"))
        else:
            found.append((name, image, name))
    return _with_masks(found, masks, missing)


def _with_masks(found: Sequence[tuple[str, Path, str]], masks: Path, missing: OnMissing) -> tuple[Entry, ...]:
    """Adds the masks to images given by name, path and name of the mask."""
    entries: list[Entry] = []
    seen: dict[str, Path] = {}
    for name, image, of_mask in found:
        if name in seen:
            missing(DataError(f"{image}: {name!r} is in the split already, as {seen[name]}; each image counts once"))
            continue
        seen[name] = image
        mask = inside(masks, f"{of_mask}.png")
        if mask.is_file():
            entries.append(Entry(name, image, mask))
        else:
            missing(DataError(f"{mask}: no such mask"))
    return tuple(entries)


def inside(root: Path, relative: str) -> Path:
    """Returns the path of a file that a list or a description names.

    Raises:
        DataError: If it leads out of `root`, or cannot be a path.
    """
    path = root / relative
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError) as error:
        raise DataError(f"{relative!r} cannot be the name of a file in {root} ({error})") from error
    if not within:
        raise DataError(f"{relative!r} leads out of the folder {root}")
    return path


def find_classes(root: Path, layout: Layout) -> Classes:
    """Returns the classes of a folder: those of `classes.json`, the layout's own, or the labels found in the masks.

    Raises:
        DataError: If a description cannot be read, or masks without one hold 0 and 255 only, or lack more than
            `MISSING_LABELS` of the labels up to the largest.
    """
    described = root / "classes.json"
    if described.is_file():
        return read_classes(described)
    if layout == "voc":
        return voc_classes()
    if layout == "cityscapes":
        return CITYSCAPES
    if layout == "ade20k":
        return read_ade20k_classes(root / "objectInfo150.txt")
    first_with: dict[int, Path] = {}
    for path in sorted((root / "masks").rglob("*.png")):
        with suppress(DataError):  # a mask that cannot be read is found, and named, with whatever else is read
            for label in np.unique(read_mask(path)).tolist():
                first_with.setdefault(label, path)
    labels = set(first_with)
    if labels == {0, 255}:
        raise DataError(
            f"{root / 'masks'}: the masks hold 0 and 255 only, and 255 is ignored: nothing is left to tell apart. If "
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


def own_label_map(layout: Layout) -> UInt8Array | None:
    """Returns what the values stored in a layout's masks mean, 256 entries; None where they are the classes.

    Cityscapes' masks hold 34 ids, of which 19 are classes; ADE20K's hold 0 for none and then the classes from 1.
    """
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
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        names = tuple(row[4].strip() for row in rows)
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{path}: not ADE20K's table of classes ({error})") from error
    if len(names) != 150:
        raise DataError(f"{path}: {len(names)} classes instead of 150")
    return Classes(names, voc_palette(150))


def read_classes(path: Path) -> Classes:
    """Reads `classes.json`: a list `classes` of objects with `id`, `name` and `color`, and `ignore_index`.

    Raises:
        DataError: If it cannot be read or lacks one of these.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = sorted(content["classes"], key=lambda row: int(row["id"]))
        if [int(row["id"]) for row in rows] != list(range(len(rows))) or len(rows) < 2:
            raise DataError(f"{path}: the ids must be 0, 1, 2 and so on, at least two of them")
        colors = tuple((int(r), int(g), int(b)) for r, g, b in (row["color"] for row in rows))
        ignore_index = int(content.get("ignore_index", 255))
        if not all(0 <= value <= 255 for color in colors for value in color):
            raise DataError(f"{path}: a colour is not three numbers from 0 to 255")
        if not len(rows) <= ignore_index <= 255:
            raise DataError(f"{path}: ignore_index {ignore_index} is a class or over 255")
        names = tuple(str(row["name"]) for row in rows)
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two classes have the same name")
        return Classes(names, colors, ignore_index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not a readable list of classes ({type(error).__name__}: {error})") from error
