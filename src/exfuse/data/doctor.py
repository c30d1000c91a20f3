"""Finding all problems of a data set, not only the first one."""

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

MAX_MISSING = 100_000  # missing files of a split that are reported one by one
RARE = 0.0005  # fraction of the labelled pixels below which a class is reported as rare


@dataclass(frozen=True)
class Issue:
    """A problem, or something worth checking.

    Attributes:
        severity: "error" if training would stop; "warning" if it would not, but the data may be wrong.
        kind: A short name, for counting.
        file: The file concerned; empty for the split as a whole.
        message: A description, with the place and the number of pixels.
        pixels: Number of pixels concerned; 0 if not applicable.
        first: Row and column of the first such pixel, or None.
    """

    severity: str
    kind: str
    file: str
    message: str
    pixels: int = 0
    first: tuple[int, int] | None = None


@dataclass(frozen=True)
class ValidationReport:
    """The content and the problems of a split.

    Attributes:
        split: Its name.
        images: Number of images.
        pixels: Class name -> number of labelled pixels, over all masks that could be read.
        ignored: Number of ignored pixels.
        issues: All problems, file by file.
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
        """Returns the report as the content of a JSON file."""
        return asdict(self)


def open_leniently(source: Path, split: str) -> tuple[SegmentationDataset, tuple[Issue, ...]]:
    """Opens a split like `open_dataset`, but skips files that are missing or listed twice, and returns them as issues.

    Raises:
        ConfigError: As `open_dataset`.
        DataError: As `open_dataset`, or if there are more than `MAX_MISSING` issues.
    """
    missing: list[Issue] = []

    def note(error: DataError) -> None:
        if len(missing) == MAX_MISSING:
            raise DataError(f"{source}: more than {MAX_MISSING:,} files of {shown(split)} are missing or listed twice")
        message = str(error)
        missing.append(Issue("error", "listing", message.partition(": ")[0], message))

    return open_dataset(source, split, note), tuple(missing)


def find_shared(datasets: Sequence[SegmentationDataset]) -> list[tuple[Issue, ...]]:
    """Returns, for each split, a warning for each image that an earlier split also contains, which inflates scores."""
    seen: dict[Path, str] = {}
    found = []
    for dataset in datasets:
        places = {entry.image.resolve(): str(entry.image) for entry in dataset.entries}
        found.append(
            tuple(
                Issue("warning", "shared", name, f"is also in the split {seen[place]!r}")
                for place, name in places.items()
                if place in seen
            )
        )
        seen |= dict.fromkeys(places, dataset.split)
    return found


def validate(
    dataset: SegmentationDataset, missing: tuple[Issue, ...] = (), progress: Callable[[], None] = lambda: None
) -> ValidationReport:
    """Reads every file of a split and reports all problems.

    Args:
        dataset: The split.
        missing: Issues found when it was opened; see `open_leniently`.
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
    """Returns an issue that concerns all pixels of a file, if their number can be read from its header."""
    try:
        height, width = image_size(path)
    except DataError:
        return Issue("error", kind, str(path), str(error))
    return Issue("error", kind, str(path), str(error), height * width, (0, 0))


def _size_differs(entry: Entry, mask: tuple[int, ...], image: tuple[int, ...]) -> Issue:
    """Returns an issue about the pixels that only the mask or only the image has; both sizes are (height, width)."""
    height, width = min(mask[0], image[0]), min(mask[1], image[1])
    alone = mask[0] * mask[1] + image[0] * image[1] - 2 * height * width
    first = (0, width) if mask[1] != image[1] else (height, 0)
    message = (
        f"the mask is {mask[1]} x {mask[0]}, its image {image[1]} x {image[0]}: {alone} pixels are in only one "
        f"of them, the first at row {first[0]}, column {first[1]}"
    )
    if image == mask[::-1]:
        message += "; the mask seems to lack the rotation in the image's EXIF tag"
    return Issue("error", "size", str(entry.mask), message, alone, first)


def _check_orientation(entry: Entry) -> Iterator[Issue]:
    _, orientation = image_header(entry.image)
    if orientation != 1:
        message = f"rotated by its EXIF tag (orientation {orientation}); its mask must be upright already"
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
        yield Issue("warning", "all ignored", str(entry.mask), "all its pixels are ignored", int(mask.size), (0, 0))


def _check_counts(labelled: dict[str, int], split: str) -> Iterator[Issue]:
    total = sum(labelled.values())
    for name, pixels in labelled.items():
        if pixels == 0:
            yield Issue("warning", "absent class", "", f"{split}: no pixel has the class {name!r}")
        elif pixels < RARE * total:
            percent = 100 * pixels / total
            yield Issue(
                "warning", "rare class", "", f"{split}: {name!r} has {percent:.4f} % of labelled pixels", pixels
            )
