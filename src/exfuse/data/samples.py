"""One labelled image: reading the two files and holding what was read."""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from exfuse.errors import DataError, without_path

UInt8Array = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# The only readers of Pillow that see a file, whatever its name; another one would run Ghostscript on it.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")

ORIENTATION = 0x0112  # the EXIF tag
FIRST_LYING = 5  # its values from here on turn the image by a quarter

# Beyond these an image is refused from its header, before a pixel is decoded.
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384

# Bytes that a pixel of the largest image allowed may take: four channels of 16 bits, but in a WebP file, which is read
# whole when it is opened; and what else a file may hold.
BYTES_OF_PIXEL = 8
BYTES_OF_WEBP = 1
BYTES_BESIDE = 4_000_000
WEBP = re.compile(rb"RIFF....WEBP", re.DOTALL)
SCAN = b"\xff\xda"  # the marker that begins a JPEG's scan; elsewhere an FF is followed by 00
MAX_SCANS = 100  # encoders write about ten

# What Pillow raises on bytes that are no image, or only the start of one, besides OSError.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    ZeroDivisionError,
    AttributeError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    struct.error,
)


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


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Reads an image as RGB uint8 `(H, W, 3)`, turned upright by its EXIF orientation.

    Args:
        path: The file.
        max_pixels: How many it may have; a limit above the usual one lifts that of the sides as well.

    Raises:
        DataError: If the file is missing, broken or larger than `max_pixels` or, by default, 16,384 pixels a side.
    """
    try:
        with _pillow_limit(max_pixels), _opened(path, max_pixels) as image:
            _check_scans(path, image)
            upright = ImageOps.exif_transpose(image)
            return np.array(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except _BROKEN as error:
        raise DataError(f"{path}: not a readable image ({without_path(error)})") from error


def image_size(path: Path) -> tuple[int, int]:
    """Returns an image's height and width, upright, from its header, without decoding it.

    Raises:
        DataError: If the file is missing, no image, or too large; see `read_image`.
    """
    try:
        with _opened(path, MAX_PIXELS) as image:
            width, height = image.size
            lies = image.getexif().get(ORIENTATION, 1) >= FIRST_LYING
            return (width, height) if lies else (height, width)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except _BROKEN as error:
        raise DataError(f"{path}: not a readable image ({without_path(error)})") from error


def read_mask(path: Path) -> UInt8Array:
    """Reads a mask's stored indices as uint8 `(H, W)`, without touching its palette.

    Raises:
        DataError: If the file is missing, broken, too large, or neither an 8-bit palette nor an 8-bit greyscale image.
    """
    try:
        with _opened(path, MAX_PIXELS) as image:
            _check_scans(path, image)
            if image.mode not in ("P", "L"):
                raise DataError(
                    f"{path}: a mask must be an 8-bit palette or greyscale image whose values are class indices; "
                    f"this one has mode {image.mode}"
                )
            if image.format == "PNG" and str(image.tile[0][3]).startswith("L;"):
                # Readers stretch its 4 or 16 greys to 256, so that it is not known what number was meant.
                raise DataError(f"{path}: a greyscale mask of fewer than 8 bits; save it with 8, or with a palette")
            return np.array(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such mask") from error
    except _BROKEN as error:
        raise DataError(f"{path}: not a readable mask ({without_path(error)})") from error


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
    counts = np.bincount(sample.mask.ravel(), minlength=256)
    counts[:num_classes] = 0
    counts[ignore_index] = 0
    if counts.any():
        label = int(np.flatnonzero(counts)[0])
        row, column = (int(place[0]) for place in np.nonzero(sample.mask == label))
        raise DataError(
            f"{mask_path}: {int(counts[label])} pixels have the label {label}, the first at row {row}, "
            f"column {column}; classes are 0 to {num_classes - 1}, {ignore_index} is ignored"
        )


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Opens an image file whose size, in bytes and in pixels, is within the limits."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: not a file")
    with path.open("rb") as file:
        is_webp = WEBP.fullmatch(file.read(12)) is not None
    limit = max_pixels * (BYTES_OF_WEBP if is_webp else BYTES_OF_PIXEL) + BYTES_BESIDE
    if path.stat().st_size > limit:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes is over the limit of {limit:,}")
    with Image.open(path, formats=FORMATS) as image:
        _check_size(path, image, max_pixels)
        yield image


def _check_scans(path: Path, image: Image.Image) -> None:
    """Checks a progressive JPEG, each of whose scans takes as long as the whole image, and little of the file."""
    if "progressive" in image.info and path.read_bytes().count(SCAN) > MAX_SCANS:
        raise DataError(f"{path}: a JPEG of more than {MAX_SCANS} scans")


def _check_size(path: Path, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    max_side = MAX_SIDE if max_pixels <= MAX_PIXELS else max_pixels
    if width * height > max_pixels or max(width, height) > max_side:
        raise DataError(
            f"{path}: {width} x {height} pixels is over the limit of {max_pixels:,} pixels and {max_side:,} a side"
        )


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Lets Pillow open what our own limit allows, where that is above Pillow's."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None and max_pixels > before:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
