"""One labelled image: reading the two files and holding what was read."""

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from exfuse.data.image_files import MAX_PIXELS as MAX_PIXELS
from exfuse.data.image_files import image_header, name_of, open_image
from exfuse.data.pixels import UInt8Array as UInt8Array
from exfuse.data.pixels import to_indices, to_rgb
from exfuse.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
AT_ONCE = 1 << 20  # labels counted at a time, which takes eight bytes for each


@dataclass(frozen=True)
class Sample:
    """A labelled image.

    Attributes:
        image: RGB, uint8, `(H, W, 3)`.
        mask: Class indices, uint8, `(H, W)`.
    """

    image: UInt8Array
    mask: UInt8Array

    @property
    def target(self) -> UInt8Array:
        """The mask, as what is to be learnt."""
        return self.mask


def read_image(source: Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Reads an image as RGB uint8 `(H, W, 3)`, turned upright by its EXIF orientation; see `to_rgb`.

    Args:
        source: The file, or one that is open for reading in binary mode.
        max_pixels: How many it may have; a limit above the usual one lifts that of the sides as well.

    Raises:
        DataError: If the file is missing, broken, larger than `max_pixels` or, by default, 16,384 pixels a side, or
            of a mode or depth that is not understood to the bit.
    """
    with open_image(source, max_pixels) as image:
        return to_rgb(image, source if isinstance(source, Path) else name_of(source))


def image_size(path: Path) -> tuple[int, int]:
    """Returns an image's height and width, upright, from its header, without decoding it.

    Raises:
        DataError: If the file is missing, no image, or too large; see `read_image`.
    """
    return image_header(path)[0]


def read_mask(path: Path) -> UInt8Array:
    """Reads a mask's stored indices as uint8 `(H, W)`, without touching its palette.

    Raises:
        DataError: If the file is missing, broken, too large, compressed with loss, or neither an 8-bit greyscale image
            nor one with a palette.
    """
    with open_image(path, kind="mask") as image:
        return to_indices(image, path)


def count_labels(mask: UInt8Array) -> npt.NDArray[np.int64]:
    """Returns how often each value occurs, `(256,)`."""
    labels = mask.reshape(-1)
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, labels.size, AT_ONCE):
        counts += np.bincount(labels[start : start + AT_ONCE], minlength=256)
    return counts


def first_place(mask: UInt8Array, label: int) -> tuple[int, int]:
    """Returns the row and column of a label's first pixel, where there is one."""
    row, column = divmod(int((mask == label).argmax()), mask.shape[1])
    return row, column


def spread(length: int, count: int) -> list[int]:
    """Returns `count` places spread evenly from 0 to `length` - 1, or all of them if they are fewer."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})


def check_sample(sample: Sample, num_classes: int, ignore_index: int, image_path: Path, mask_path: Path) -> None:
    """Checks that a mask fits its image and holds known classes only.

    Args:
        sample: What was read.
        num_classes: K; labels 0 to K - 1 are classes.
        ignore_index: The one other value that is allowed.
        image_path: Named in errors.
        mask_path: Named in errors.

    Raises:
        DataError: With the file, and the value, count and first coordinate of a label that is no class.
    """
    height, width = sample.mask.shape
    if sample.image.shape[:2] != (height, width):
        image_height, image_width = sample.image.shape[:2]
        hint = ""
        if (image_height, image_width) == (width, height):
            hint = " (the mask seems to lack the rotation that the image's EXIF tag asks for)"
        raise DataError(
            f"{mask_path}: the mask is {width} x {height}, "
            f"its image {image_path} is {image_width} x {image_height}{hint}"
        )
    counts = count_labels(sample.mask)
    counts[:num_classes] = 0
    counts[ignore_index] = 0
    if counts.any():
        label = int(np.flatnonzero(counts)[0])
        row, column = first_place(sample.mask, label)
        raise DataError(
            f"{mask_path}: {int(counts[label])} pixels have the label {label}, the first at row {row}, "
            f"column {column}; classes are 0 to {num_classes - 1}, {ignore_index} is ignored"
        )
