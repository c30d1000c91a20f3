"""Looking for everything that is wrong with a data set, not only for the first of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exfuse.data.classes import Classes
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.formats.base import Entry
from exfuse.data.image_files import image_header
from exfuse.data.parallel import map_images
from exfuse.data.samples import UInt8Array, count_labels, first_place, image_size, read_image, read_mask
from exfuse.data.stats import Int64Array
from exfuse.errors import DataError, shown

MAX_MISSING = 100_000  # files of a split that are noted one by one
RARE = 0.0005  # fraction of the labelled pixels under which a class is called rare


@dataclass(frozen=True)
class Issue:
    """Something wrong, or worth a look.

    Attributes:
        severity: "error": training would stop here; "warning": it would not, but should perhaps.
        kind: A short name, for counting.
        file: The file it is about; empty for the split as a whole.
        message: What, where, how much.
        pixels: How many pixels are concerned; 0 where that makes no sense.
        first: Row and column of the first of them, or None.
    """

    severity: str
    kind: str
    file: str
    message: str
    pixels: int = 0
    first: tuple[int, int] | None = None


@dataclass(frozen=True)
class ValidationReport:
    """What was found in a split.

    Attributes:
        split: Its name.
        images: How many there are.
        pixels: Labelled pixels of each class, over all masks that could be read.
        ignored: Pixels that are no class.
        issues: What is wrong, file by file.
    """

    split: str
    images: int
    pixels: dict[str, int]
    ignored: int
    issues: tuple[Issue, ...]

    @property
    def errors(self) -> int:
        """Number of issues that would stop training."""
        return sum(issue.severity == "error" for issue in self.issues)

    def to_json(self) -> dict[str, Any]:
        """Returns everything."""
        return asdict(self)


def open_leniently(source: Path, split: str) -> tuple[SegmentationDataset, tuple[Issue, ...]]:
    """Opens a split as `open_dataset` does; what is missing or named twice is left out, and returned as issues.

    Raises:
        ConfigError: As `open_dataset`.
        DataError: As `open_dataset`, or if there are more than `MAX_MISSING` issues.
    """
    missing: list[Issue] = []

    def note(error: DataError) -> None:
        if len(missing) == MAX_MISSING:
            raise DataError(f"{source}: more than {MAX_MISSING:,} files of {shown(split)} are missing or named twice")
        message = str(error)
        missing.append(Issue("error", "listing", message.partition(": ")[0], message))

    return open_dataset(source, split, note), tuple(missing)


def find_shared(datasets: Sequence[SegmentationDataset]) -> list[tuple[Issue, ...]]:
    """Returns, for each of several splits, the images that an earlier one has, too: a score on them would flatter."""
    seen: dict[Path, str] = {}
    found = []
    for dataset in datasets:
        places = {entry.image.resolve(): str(entry.image) for entry in dataset.entries}
        found.append(
            tuple(
                Issue("warning", "shared", name, f"is in the split {seen[place]!r}, too")
                for place, name in places.items()
                if place in seen
            )
        )
        seen |= dict.fromkeys(places, dataset.split)
    return found


def validate(
    dataset: SegmentationDataset, missing: tuple[Issue, ...] = (), progress: Callable[[], None] = lambda: None
) -> ValidationReport:
    """Reads every file of a split and notes all that is wrong with it.

    Args:
        dataset: The split.
        missing: What was found already; see `open_leniently`.
        progress: Called after each image.
    """
    counts = np.zeros(256, dtype=np.int64)
    issues = list(missing)
    examined = map_images(
        lambda entry: _check_entry(entry, dataset), dataset.entries, lambda entry: (entry.image, entry.mask)
    )
    for mask_counts, entry_issues in examined:
        counts += mask_counts
        issues.extend(entry_issues)
        progress()
    classes = dataset.classes
    labelled = dict(zip(classes.names, counts[: len(classes)].tolist(), strict=True))
    issues.extend(_check_counts(labelled, dataset.split))
    return ValidationReport(dataset.split, len(dataset), labelled, int(counts[classes.ignore_index]), tuple(issues))


def _check_entry(entry: Entry, dataset: SegmentationDataset) -> tuple[Int64Array, list[Issue]]:
    issues: list[Issue] = []
    size = None
    try:
        size = read_image(entry.image).shape[:2]
        issues.extend(_check_orientation(entry))
    except DataError as error:
        issues.append(_unusable("image", entry.image, error))
    try:
        mask = read_mask(entry.mask)
    except DataError as error:
        issues.append(_unusable("mask", entry.mask, error))
        return np.zeros(256, dtype=np.int64), issues
    if dataset.label_map is not None:
        mask = dataset.label_map[mask]
    if size is not None and size != mask.shape:
        issues.append(_size_differs(entry, mask.shape, size))
    counts = count_labels(mask)
    issues.extend(_check_labels(entry, mask, counts, dataset.classes))
    return counts, issues


def _unusable(kind: str, path: Path, error: DataError) -> Issue:
    """Returns an issue about all pixels that a file has by its header, if that much can be read of it."""
    try:
        height, width = image_size(path)
    except DataError:
        return Issue("error", kind, str(path), str(error))
    return Issue("error", kind, str(path), str(error), height * width, (0, 0))


def _size_differs(entry: Entry, mask: tuple[int, ...], image: tuple[int, ...]) -> Issue:
    """Returns an issue about the pixels that only one of the two has; `mask` and `image` are heights and widths."""
    height, width = min(mask[0], image[0]), min(mask[1], image[1])
    alone = mask[0] * mask[1] + image[0] * image[1] - 2 * height * width
    first = (0, width) if mask[1] != image[1] else (height, 0)
    message = (
        f"the mask is {mask[1]} x {mask[0]}, its image {image[1]} x {image[0]}: {alone} pixels are of one alone, the "
        f"first at row {first[0]}, column {first[1]}"
    )
    if image == mask[::-1]:
        message += "; it seems to lack the rotation that the image's EXIF tag asks for"
    return Issue("error", "size", str(entry.mask), message, alone, first)


def _check_orientation(entry: Entry) -> Iterator[Issue]:
    _, orientation = image_header(entry.image)
    if orientation != 1:
        message = f"turned by its EXIF tag (orientation {orientation}); its mask must be upright already"
        yield Issue("warning", "orientation", str(entry.image), message)


def _check_labels(entry: Entry, mask: UInt8Array, counts: Int64Array, classes: Classes) -> Iterator[Issue]:
    for label in np.flatnonzero(counts).tolist():
        if label < len(classes) or label == classes.ignore_index:
            continue
        row, column = first_place(mask, label)
        message = (
            f"{counts[label]} pixels have the label {label}, the first at row {row}, column {column}; "
            f"classes are 0 to {len(classes) - 1}, {classes.ignore_index} is ignored"
        )
        yield Issue("error", "label", str(entry.mask), message, int(counts[label]), (row, column))
    if counts[classes.ignore_index] == mask.size:
        yield Issue("warning", "all ignored", str(entry.mask), "no pixel of it has a class", int(mask.size), (0, 0))


def _check_counts(labelled: dict[str, int], split: str) -> Iterator[Issue]:
    total = sum(labelled.values())
    for name, pixels in labelled.items():
        if pixels == 0:
            yield Issue("warning", "absent class", "", f"{split} has no pixel of the class {name!r}")
        elif pixels < RARE * total:
            percent = 100 * pixels / total
            yield Issue("warning", "rare class", "", f"{split}: {name!r} has {percent:.4f} % of the pixels", pixels)
