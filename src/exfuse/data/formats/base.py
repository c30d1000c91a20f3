"""The interface of data formats, and functions that most of them share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from exfuse.data.classes import Classes, numbered_classes
from exfuse.data.files import image_files, inside, read_names
from exfuse.data.samples import IMAGE_SUFFIXES, UInt8Array, read_mask
from exfuse.errors import DataError, did_you_mean, shown, without_path

OnMissing = Callable[[DataError], None]

MASK_SUFFIX = ".png"
MAX_HINTS = 1000  # lists that are searched for a name similar to a missing one's
MISSING_LABELS = 64  # labels below the largest that masks may lack if the number of classes is not given
_UPPER_SUFFIXES = tuple(suffix.upper() for suffix in IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Entry:
    """The files of a labelled image.

    Attributes:
        name: Identifier within the split, without a suffix.
        image: Path of the image.
        mask: Path of the mask.
    """

    name: str
    image: Path
    mask: Path


class FoundImage(NamedTuple):
    """An image of a split, before its mask is looked up.

    Attributes:
        name: Identifier within the split, without a suffix.
        path: Path of the image.
        mask: Name of its mask in the folder of masks, without a suffix.
    """

    name: str
    path: Path
    mask: str


class DatasetFormat(ABC):
    """A way of storing labelled images in a folder; masks are PNG files that store labels."""

    name: ClassVar[str]
    """Its name in dataset files."""

    contents: ClassVar[str]
    """Description of the folder's content, for the error if no format is recognised; "{split}" stands for the split."""

    @abstractmethod
    def detect(self, root: Path, split: str) -> bool:
        """Returns whether a folder has this format, judging by its content."""

    @abstractmethod
    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        """Yields the images of a split in their stored order.

        Args:
            root: Folder of the data set.
            split_source: The split's list or folder, from `split_source` or a dataset file.
            missing: Called with an error for each missing image; if it returns, the image is skipped.

        Raises:
            DataError: If the split cannot be read.
        """

    @abstractmethod
    def masks(self, root: Path, split_source: str) -> Path:
        """Returns the folder of a split's masks."""

    def split_source(self, split: str) -> str:
        """Returns the name of a split's list or folder in this format; a dataset file names its own."""
        return split

    def classes(self, root: Path) -> Classes:
        """Returns the classes of a folder without `classes.json`.

        By default the labels found below `root/masks` are numbered; a format with masks elsewhere overrides this.

        Raises:
            DataError: If they cannot be determined.
        """
        return classes_in_masks(root / "masks")

    def label_map(self) -> UInt8Array | None:
        """Returns 256 entries, stored value -> label; None if masks store labels."""
        return None

    def entries(self, root: Path, split: str, split_source: str, missing: OnMissing) -> tuple[Entry, ...]:
        """Returns a split's images and masks in their stored order.

        Args:
            root: Folder of the data set.
            split: The split's name, for errors.
            split_source: Its list or its folder.
            missing: Called with an error for each file that is missing or listed twice; if it returns, the image is
                skipped.

        Raises:
            DataError: If a file is missing or listed twice, or the split has no images.
        """
        absent: list[DataError] = []

        def note(error: DataError) -> None:
            missing(error)
            absent.append(error)

        found = self.images(root, split_source, note)
        entries = tuple(_with_masks(found, self.masks(root, split_source), note))
        if not entries and not absent:
            raise DataError(f"{root}: split {shown(split)} has no images")
        return entries


def stop(error: DataError) -> None:
    """Raises the error: the default way to handle a missing file."""
    raise error


def images_of_folder(images: Path, missing: OnMissing) -> Iterator[FoundImage]:
    """Yields the images below a folder, at any depth; a mask has the name of its image.

    Args:
        images: The folder.
        missing: Called with an error for each broken link.

    Raises:
        DataError: If the folder does not exist.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    for path in image_files(images):
        if path.exists():
            name = path.relative_to(images).as_posix().removesuffix(path.suffix)
            yield FoundImage(name, path, name)
        else:
            missing(DataError(f"{path}: broken link"))


def images_of_list(images: Path, list_path: Path, missing: OnMissing) -> Iterator[FoundImage]:
    """Yields the images that a list names, one per line, without a suffix.

    Args:
        images: Folder of the images.
        list_path: The list.
        missing: Called with an error for each missing image.

    Raises:
        DataError: If the list cannot be read, or a name leads out of the folder.
    """
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
            yield FoundImage(name, image, name)
        elif broken := next((path for path in _with_suffixes(images, name) if path.is_symlink()), None):
            missing(DataError(f"{line}: {broken} is a broken link"))
        else:
            hint = "; names in a list have no suffix" if Path(name).suffix.lower() in IMAGE_SUFFIXES else ""
            missing(DataError(f"{line}: no image named {shown(name)} in {images}{hint}"))


def _with_suffixes(folder: Path, name: str) -> Iterator[Path]:
    """Yields the paths where an image may be, in the order in which they are tried."""
    for suffix in (*IMAGE_SUFFIXES, *_UPPER_SUFFIXES):
        yield folder / f"{name}{suffix}"


def _with_masks(found: Iterable[FoundImage], masks: Path, missing: OnMissing) -> Iterator[Entry]:
    """Yields images with their masks."""
    seen: dict[str, Path] = {}
    for name, image, mask_name in found:
        if not seen and not masks.is_dir():
            missing(DataError(f"{masks}: no such folder; it should contain the masks"))
            return
        if name in seen:
            missing(DataError(f"{image}: {shown(name)} is in the split already, as {seen[name]}; list each image once"))
            continue
        seen[name] = image
        mask = masks / f"{mask_name}{MASK_SUFFIX}"
        if mask.is_file():
            yield Entry(name, image, mask)
        elif mask.is_symlink():
            missing(DataError(f"{mask}: broken link"))
        else:
            other = next((path.name for path in _with_suffixes(masks, mask_name) if path.is_file()), None)
            hint = f"; found {other}, but masks must be {MASK_SUFFIX} files" if other else ""
            missing(DataError(f"{mask}: no such mask{hint}"))


def classes_in_masks(*folders: Path) -> Classes:
    """Returns numbered classes for the labels found in the PNG files below folders of masks.

    Raises:
        DataError: If the labels are 0 and 255 only, or more than `MISSING_LABELS` of those up to the largest are
            missing.
    """
    first_with: dict[int, Path] = {}
    for path in (path for folder in folders if folder.is_dir() for path in image_files(folder)):
        if path.suffix != MASK_SUFFIX:
            continue
        with suppress(DataError):  # a mask that cannot be read is reported when its sample is read
            for label in np.unique(read_mask(path)).tolist():
                first_with.setdefault(label, path)
    labels = set(first_with)
    if labels == {0, 255}:
        raise DataError(
            f"{first_with[255].parent}: the masks contain 0 and 255 only, and 255 is ignored, so there is only one "
            "class. If 255 is your second class, describe the data in a YAML file with label_map: {255: 1} "
            "(docs/data.md)"
        )
    classes = sorted(labels - {255})
    count = max(classes, default=0) + 1
    if count - len(classes) > MISSING_LABELS:
        others = f"only {', '.join(map(str, classes[:-1]))}" if len(classes) > 1 else "none"
        raise DataError(
            f"{first_with[classes[-1]]}: has the label {classes[-1]}, but of the lower labels the masks contain "
            f"{others}. If it is a mistake, correct the masks; otherwise describe the labels in classes.json or with "
            "label_map in a YAML file (docs/data.md)"
        )
    return numbered_classes(max(count, 2))
