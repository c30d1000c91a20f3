"""Reading and checking a labelled image: an image file and a mask file."""

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
AT_ONCE = 1 << 20  # labels counted at a time; counting needs 8 bytes for each


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
        """The mask, as the training target."""
        return self.mask


def read_image(source: Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Reads an image as RGB uint8 `(H, W, 3)`, rotated upright by its EXIF orientation; see `to_rgb`.

    Args:
        source: A path, or a file open for reading in binary mode.
        max_pixels: Largest number of pixels; a value above the default also lifts the limit on the sides.

    Raises:
        DataError: If the file is missing, broken, larger than `max_pixels` or, by default, 16,384 pixels per side, or
            its mode or depth cannot be converted exactly.
    """
    with open_image(source, max_pixels) as image:
        return to_rgb(image, source if isinstance(source, Path) else name_of(source))


def image_size(path: Path) -> tuple[int, int]:
    """Returns an image's upright (height, width) from its header, without decoding it.

    Raises:
        DataError: If the file is missing, not an image, or too large; see `read_image`.
    """
    return image_header(path)[0]


def read_mask(path: Path) -> UInt8Array:
    """Reads the values stored in a mask, uint8 `(H, W)`, ignoring its palette.

    Raises:
        DataError: If the file is missing, broken, too large, of a format with lossy compression, or neither an 8-bit
            greyscale image nor a palette image.
    """
    with open_image(path, kind="mask") as image:
        return to_indices(image, path)


def count_labels(mask: UInt8Array) -> npt.NDArray[np.int64]:
    """Returns how often each value occurs, int64 `(256,)`."""
    labels = mask.reshape(-1)
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, labels.size, AT_ONCE):
        counts += np.bincount(labels[start : start + AT_ONCE], minlength=256)
    return counts


def first_place(mask: UInt8Array, label: int) -> tuple[int, int]:
    """Returns the row and column of a label's first pixel; the label must occur in the mask."""
    row, column = divmod(int((mask == label).argmax()), mask.shape[1])
    return row, column


def spread(length: int, count: int) -> list[int]:
    """Returns `count` indices spread evenly from 0 to `length` - 1, or all of them if there are fewer."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})


def check_sample(sample: Sample, num_classes: int, ignore_index: int, image_path: Path, mask_path: Path) -> None:
    """Checks that a mask has the size of its image and contains known classes only.

    Args:
        sample: The image and mask.
        num_classes: K; labels 0 to K - 1 are classes.
        ignore_index: The only other label that is allowed.
        image_path: For errors.
        mask_path: For errors.

    Raises:
        DataError: If not; for an unknown label, with its value, its count and the position of its first pixel.
    """
    height, width = sample.mask.shape
    if sample.image.shape[:2] != (height, width):
        image_height, image_width = sample.image.shape[:2]
        hint = ""
        if (image_height, image_width) == (width, height):
            hint = " (the mask seems to lack the rotation in the image's EXIF tag)"
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
