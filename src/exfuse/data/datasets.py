"""Opening the labelled images of a data set on disk, in any registered format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from exfuse.data.classes import Classes, voc_palette
from exfuse.data.classes_file import CLASSES_FILE, Byte, read_classes
from exfuse.data.files import MAX_NAME, inside, read_text
from exfuse.data.formats import FORMATS, detect_format
from exfuse.data.formats.base import Entry, OnMissing, stop
from exfuse.data.samples import Sample, UInt8Array, check_sample, read_image, read_mask
from exfuse.errors import ConfigError, DataError, brief, did_you_mean, shown, without_path
from exfuse.validation import describe, load_yaml

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"unknown format {brief(name, 60)!r}; {did_you_mean(brief(name, 60), FORMATS)}")
    return name


class DatasetFile(BaseModel):
    """A data set described in YAML; see docs/data.md.

    Attributes:
        root: Folder of the data, relative to the YAML file.
        format: A name in `exfuse.data.formats.FORMATS`: "lists" (images/, masks/, one list of names per split),
            "folders" (images/SPLIT, masks/SPLIT), "voc" (JPEGImages, SegmentationClass, ImageSets/Segmentation),
            "cityscapes" (leftImg8bit, gtFine) or "ade20k" (images/SPLIT, annotations/SPLIT). The key's older name
            `layout` is accepted as well.
        splits: Split name -> its list file relative to the root ("lists"), the name of its list ("voc"), or the name
            of its folder (other formats).
        names: Class names in the order of the labels.
        palette: One RGB colour per class; by default PASCAL VOC's.
        ignore_index: The label that is not a class.
        label_map: Value stored in a mask -> class index or `ignore_index`, for masks that store other values. Values
            that are not listed stay unchanged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Name
    format: Annotated[str, AfterValidator(_known_format)] = Field(validation_alias=AliasChoices("format", "layout"))
    splits: dict[Name, Name]
    names: tuple[str, ...] = Field(min_length=2, max_length=255)
    palette: tuple[tuple[Byte, Byte, Byte], ...] | None = None
    ignore_index: Byte = 255
    label_map: dict[Byte, Byte] | None = None


@dataclass(frozen=True)
class SegmentationDataset:
    """One split of a data set: `len()`, and checked samples by index.

    Attributes:
        root: Folder of the data.
        split: Name of the split.
        classes: The classes of the labels.
        entries: The images and masks in their stored order.
        label_map: 256 entries, stored value -> label; None if masks store labels.
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
            DataError: If a file is missing or broken, or the mask is invalid; see `read_image` and `check_sample`.
            IndexError: Past the end.
        """
        entry = self.entries[index]
        mask = read_mask(entry.mask)
        sample = Sample(read_image(entry.image), mask if self.label_map is None else self.label_map[mask])
        check_sample(sample, len(self.classes), self.classes.ignore_index, entry.image, entry.mask)
        return sample

    def image_path(self, index: int) -> Path:
        """Returns the path of an image."""
        return self.entries[index].image

    def files_of(self, index: int) -> tuple[Path, Path]:
        """Returns the paths of an image and its mask."""
        return self.entries[index].image, self.entries[index].mask


def open_dataset(source: str | Path, split: str, missing: OnMissing = stop) -> SegmentationDataset:
    """Opens one split of a data set.

    Args:
        source: A dataset file (`.yaml`), or a folder in a registered format, recognised by its content. Class names
            come from the dataset file, from `classes.json` in the folder or from the format; otherwise the labels found
            in the masks are numbered.
        split: For example "train" or "val".
        missing: Called with an error for each image or mask that is missing or listed twice; if it returns, the image
            is skipped.

    Raises:
        ConfigError: If the dataset file is invalid or does not describe the split.
        DataError: If the folder has none of the formats, or a file of the split is missing or listed twice.
    """
    source = Path(source)
    if source.suffix.lower() in (".yaml", ".yml"):
        return _open_described(source, split, missing)
    if not source.is_dir():
        what = "not a folder" if source.exists() else "no such folder"
        raise DataError(f"{source}: {what} (a data set is a folder or a .yaml file)")
    inside(source, split)  # a check, because the name becomes part of paths
    found = detect_format(source, split)
    entries = found.entries(source, split, found.split_source(split), missing)
    described = source / CLASSES_FILE
    if described.is_file():  # it describes the stored values, so the format's label map is not applied
        return SegmentationDataset(source, split, read_classes(described), entries)
    return SegmentationDataset(source, split, found.classes(source), entries, found.label_map())


def _open_described(path: Path, split: str, missing: OnMissing) -> SegmentationDataset:
    description, classes = read_dataset_file(path)
    if split not in description.splits:
        raise ConfigError(f"{path}: unknown split {shown(split)}; {did_you_mean(split, description.splits)}")
    root = path.parent / description.root
    if not root.is_dir():
        raise ConfigError(f"{path}: root: {root} is not a folder")
    entries = FORMATS[description.format].entries(root, split, description.splits[split], missing)
    label_map = None
    if description.label_map is not None:
        label_map = np.arange(256, dtype=np.uint8)
        for stored, label in description.label_map.items():
            label_map[stored] = label
    return SegmentationDataset(root, split, classes, entries, label_map)


def read_dataset_file(path: Path) -> tuple[DatasetFile, Classes]:
    """Reads a dataset file; returns it and the classes that it describes.

    Raises:
        ConfigError: If it cannot be read, or a key is unknown, missing or has an invalid value.
    """
    try:
        content = load_yaml(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file ({without_path(error)})") from error
    try:
        description = DatasetFile.model_validate(content)
        palette = description.palette or voc_palette(len(description.names))
        return description, Classes(description.names, palette, description.ignore_index)
    except ValidationError as error:
        raise ConfigError(f"{path}: {brief(describe(error, DatasetFile))}") from error
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from error
