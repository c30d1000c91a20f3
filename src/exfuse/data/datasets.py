"""Finding the labelled images of a data set on disk, in any of the layouts people keep them in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exfuse.data.classes import Classes, numbered_classes, voc_classes, voc_palette
from exfuse.data.samples import IMAGE_SUFFIXES, Sample, UInt8Array, check_sample, read_image, read_mask
from exfuse.errors import ConfigError, DataError, brief, did_you_mean
from exfuse.validation import describe

Layout = Literal["lists", "folders", "voc"]
_UPPER_SUFFIXES = tuple(suffix.upper() for suffix in IMAGE_SUFFIXES)
Byte = Annotated[int, Field(ge=0, le=255)]


class DatasetFile(BaseModel):
    """A data set described in YAML; see docs/data.md.

    Attributes:
        root: Folder of the data, relative to the YAML file.
        layout: "lists" (images/, masks/, a list of ids for each split), "folders" (images/SPLIT, masks/SPLIT)
            or "voc" (JPEGImages, SegmentationClass, ImageSets/Segmentation).
        splits: Split name -> its list file relative to the root ("lists"), its folder's name ("folders") or its list's
            name ("voc").
        names: Class names in the order of the labels.
        palette: One RGB colour a class; PASCAL VOC's if left out.
        ignore_index: The label that is no class.
        label_map: Value stored in a mask -> class index or `ignore_index`, for masks that store other values. Values
            that are not listed stay what they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    layout: Layout
    splits: dict[str, str]
    names: tuple[str, ...] = Field(min_length=2, max_length=255)
    palette: tuple[tuple[Byte, Byte, Byte], ...] | None = None
    ignore_index: Byte = 255
    label_map: dict[Byte, Byte] | None = None


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


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a data set: `len()`, and checked samples by index.

    Attributes:
        root: Where it was found.
        split: Name of the split.
        classes: What its labels mean.
        entries: Its images in their stored order.
        label_map: 256 entries, stored value -> label; None leaves masks as they are.
    """

    root: Path
    split: str
    classes: Classes
    entries: tuple[Entry, ...]
    label_map: UInt8Array | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Reads and checks one sample.

        Raises:
            DataError: If a file is missing or broken, or the mask does not fit; see `read_image`, `check_sample`.
            IndexError: Past the end.
        """
        entry = self.entries[index]
        mask = read_mask(entry.mask)
        sample = Sample(read_image(entry.image), mask if self.label_map is None else self.label_map[mask])
        check_sample(sample, len(self.classes), self.classes.ignore_index, entry.image, entry.mask)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def open_dataset(source: Path, split: str) -> SegmentationDataset:
    """Opens one split of a data set.

    Args:
        source: A dataset file (`.yaml`), or a folder in one of the layouts of `DatasetFile`, recognised by what lies
            in it. Class names come from the dataset file, from `classes.json` in the folder, or are PASCAL VOC's for
            its tree; otherwise the labels found in the masks are numbered.
        split: For example "train" or "val".

    Raises:
        ConfigError: If the dataset file is wrong or lacks the split.
        DataError: If the folder is in none of the layouts, or a file of the split is missing.
    """
    if source.suffix.lower() in (".yaml", ".yml"):
        return _open_described(source, split)
    if not source.is_dir():
        raise DataError(f"{source}: no such folder (a data set is a folder or a .yaml file)")
    layout = _recognise_layout(source, split)
    split_place = f"{split}.txt" if layout == "lists" else split
    entries = _find_entries(source, layout, split, split_place)
    return SegmentationDataset(source, split, _find_classes(source, layout), entries)


def _open_described(path: Path, split: str) -> SegmentationDataset:
    description = read_dataset_file(path)
    if split not in description.splits:
        raise ConfigError(f"{path}: no split {split!r}; {did_you_mean(split, description.splits)}")
    root = path.parent / description.root
    palette = description.palette or voc_palette(len(description.names))
    classes = Classes(description.names, palette, description.ignore_index)
    entries = _find_entries(root, description.layout, split, description.splits[split])
    label_map = None
    if description.label_map is not None:
        label_map = np.arange(256, dtype=np.uint8)
        for stored, label in description.label_map.items():
            label_map[stored] = label
    return SegmentationDataset(root, split, classes, entries, label_map)


def read_dataset_file(path: Path) -> DatasetFile:
    """Reads a dataset file.

    Raises:
        ConfigError: If it cannot be read, or a key is unknown, missing or has a wrong value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file ({brief(error)})") from error
    try:
        description = DatasetFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, DatasetFile)}") from error
    if description.ignore_index < len(description.names):
        raise ConfigError(f"{path}: ignore_index {description.ignore_index} is a class, too; use label_map")
    if description.palette is not None and len(description.palette) != len(description.names):
        raise ConfigError(f"{path}: palette has {len(description.palette)} colours for {len(description.names)} names")
    if len(set(description.names)) < len(description.names):
        raise ConfigError(f"{path}: two classes have the same name")
    return description


def _recognise_layout(root: Path, split: str) -> Layout:
    if (root / "JPEGImages").is_dir():
        return "voc"
    if (root / "images" / split).is_dir():
        return "folders"
    if (root / "images").is_dir() and any(root.glob("*.txt")):
        return "lists"
    raise DataError(
        f"{root}: no data set found for split {split!r}. Expected images/, masks/ and {split}.txt; "
        f"or images/{split}/ and masks/{split}/; "
        f"or PASCAL VOC's JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{split}.txt; "
        "or give a dataset file (.yaml)"
    )


def _find_entries(root: Path, layout: Layout, split: str, split_place: str) -> tuple[Entry, ...]:
    if layout == "folders":
        entries = _entries_of_folders(_inside(root, f"images/{split_place}"), _inside(root, f"masks/{split_place}"))
    else:
        images, masks, names = root / "images", root / "masks", _inside(root, split_place)
        if layout == "voc":
            images, masks = root / "JPEGImages", root / "SegmentationClass"
            names = _inside(root, f"ImageSets/Segmentation/{split_place}.txt")
        entries = _entries_of_list(images, masks, names)
    if not entries:
        raise DataError(f"{root}: split {split!r} has no images")
    return entries


def _entries_of_folders(images: Path, masks: Path) -> tuple[Entry, ...]:
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    names = [path.relative_to(images).with_suffix("").as_posix() for path in paths]
    return tuple(Entry(name, path, _existing_mask(masks, name)) for name, path in zip(names, paths, strict=True))


def _entries_of_list(images: Path, masks: Path, list_path: Path) -> tuple[Entry, ...]:
    try:
        lines = list_path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_path}: not a readable list of images ({error})") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        try:
            candidates = [_inside(images, name + end) for end in (*IMAGE_SUFFIXES, *_UPPER_SUFFIXES)]
            image = next((path for path in candidates if path.is_file()), None)
        except (OSError, ValueError, DataError) as error:
            raise DataError(f"{list_path}: line {number}: {error}") from error
        if image is None:
            raise DataError(f"{list_path}: line {number}: no image named {name!r} in {images}")
        entries.append(Entry(name, image, _existing_mask(masks, name)))
    return tuple(entries)


def _existing_mask(masks: Path, name: str) -> Path:
    mask = _inside(masks, f"{name}.png")
    if not mask.is_file():
        raise DataError(f"{mask}: no such mask")
    return mask


def _inside(root: Path, relative: str) -> Path:
    path = root / relative
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError) as error:
        raise DataError(f"{relative!r} cannot be the name of a file in {root} ({error})") from error
    if not inside:
        raise DataError(f"{relative!r} leads out of the folder {root}")
    return path


def _find_classes(root: Path, layout: Layout) -> Classes:
    described = root / "classes.json"
    if described.is_file():
        return read_classes(described)
    if layout == "voc":
        return voc_classes()
    labels: set[int] = set()
    for path in sorted((root / "masks").rglob("*.png")):
        labels.update(np.unique(read_mask(path)).tolist())
    count = max(labels - {255}, default=0) + 1
    return numbered_classes(max(count, 2))


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
