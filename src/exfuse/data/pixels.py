"""Converting Pillow images to arrays; only modes and depths that convert exactly are accepted."""

from collections.abc import Callable
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from exfuse.data.image_files import LYING, MAX_PIXELS, ORIENTATION, check_file, data_errors
from exfuse.errors import DataError

UInt8Array = npt.NDArray[np.uint8]

# Accepted modes of Pillow, each with the raw modes (Pillow's names for ways of storing it) that it decodes exactly: at
# most 8 bits per channel; channels other than the colours are dropped. Excluded are 16 bits, which Pillow truncates or
# clips to 8 ("RGB;16B", "I;16"); 5 bits, which programs scale in different ways ("BGR;15"); colours premultiplied by
# alpha ("RGBa"); and modes whose colours Pillow does not convert to RGB exactly (LAB, HSV).
STORED = {
    "1": {"1", "1;I", "1;R", "1;IR"},
    "L": {f"L{bits}{order}" for bits in (";", ";2", ";4") for order in ("I", "R", "IR")} | {"L", "L;2", "L;4", "LX"},
    "LA": {"LA"},
    "P": {"P", "P;1", "P;2", "P;4", "P;R", "P;1R", "P;2R", "P;4R", "PX"},
    "PA": {"PA"},
    "RGB": {"RGB", "R", "G", "B", "RGBX", "RGBXX", "RGBXXX", "BGR", "BGRX", "XBGR", "BGXR"},
    "RGBA": {"RGBA", "R", "G", "B", "A", "RGBAX", "RGBAXX", "BGRA", "ABGR", "BGAR"},
    "CMYK": {"CMYK", "CMYK;I", "CMYKX", "CMYKXX"},
    "YCbCr": {"YCbCr"},
}

# The same for masks, whose stored values are the labels: no raw mode that inverts or scales them.
STORED_INDICES = {"L": {"L"}, "P": {"P", "P;1", "P;2", "P;4"}}
LOSSLESS = ("PNG", "BMP", "TIFF")
AT_ONCE = 1 << 18  # pixels converted at a time

# EXIF orientation -> view of an upright array in the stored order of rows and columns; other values mean 1.
AS_STORED: dict[int, Callable[[UInt8Array], UInt8Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


def to_rgb(image: Image.Image, name: object) -> UInt8Array:
    """Returns an image as RGB uint8 `(H, W, 3)`, rotated upright by its EXIF orientation.

    Transparency is dropped: the stored colours are returned, even where they are invisible.

    Args:
        image: Any Pillow image; it is decoded if necessary.
        name: The image's name in errors.

    Raises:
        DataError: If its mode or depth cannot be converted exactly.
        OSError: If it cannot be decoded; also other exceptions in `BROKEN`.
    """
    _check_mode(image, name, STORED)
    return _upright(image, "RGB", (3,))


def to_indices(image: ImageFile.ImageFile, name: object) -> UInt8Array:
    """Returns the values stored in an image file, uint8 `(H, W)`, ignoring its palette.

    Args:
        image: A file yielded by `open_image`.
        name: The file's name in errors.

    Raises:
        DataError: If the values do not have 8 bits (or fewer, with a palette), or the compression may be lossy.
        OSError: If it cannot be decoded; also other exceptions in `BROKEN`.
    """
    if image.format not in LOSSLESS or image.info.get("compression") == "jpeg":
        raise DataError(f"{name}: the compression of this {image.format} file can change labels; save the mask as PNG")
    _check_mode(image, name, STORED_INDICES)
    return _upright(image, image.mode, ())


def picture_to_rgb(image: Image.Image) -> UInt8Array:
    """Returns a caller's Pillow image as RGB uint8 `(H, W, 3)`; see `to_rgb`.

    If the image is an open file that is not decoded yet, the same checks apply as to a path. Otherwise, only its mode
    can be checked.

    Raises:
        DataError: If it is broken, or its mode or depth cannot be converted exactly.
    """
    name = getattr(image, "filename", "") or "the image"
    with data_errors(name):
        if isinstance(image, ImageFile.ImageFile) and image.fp is not None:
            position = image.fp.tell()
            check_file(name, image.fp, max(MAX_PIXELS, image.width * image.height))
            image.fp.seek(position)
        return to_rgb(image, name)


def _check_mode(image: Image.Image, name: object, stored: dict[str, set[str]]) -> None:
    raw_modes = set()
    is_known = image.mode in stored
    if isinstance(image, ImageFile.ImageFile):
        # In a JPEG file with several images (MPO), the first is the photograph (CIPA DC-007).
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError(f"{name}: files with several images are not supported; save a single image")
        raw_modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args}
        is_known = is_known and raw_modes <= stored[image.mode]
        if image.mode == "CMYK" and image.format == "JPEG":
            is_known &= "adobe" in image.info  # otherwise it is unknown whether 255 means full ink or none
        if image.mode in ("1", "L") and image.format == "BMP" and image.fp is not None:
            is_known &= _bits_of_bmp(image.fp) == (1 if image.mode == "1" else 8)
    if not is_known:
        mode = f"mode {image.mode}" + "".join(f", stored as {raw}" for raw in sorted(raw_modes - {image.mode}))
        if stored is STORED:
            raise DataError(
                f"{name}: {mode} cannot be converted to 8-bit RGB exactly; save the image as 8-bit greyscale or RGB"
            )
        raise DataError(
            f"{name}: {mode} is not a mask; save it as an 8-bit palette or greyscale image whose values are class "
            "indices"
        )


def _bits_of_bmp(file: IO[bytes]) -> int:
    """Returns the bits per pixel; for some palettes, Pillow's mode claims 1 (black and white) or 8 (greys) instead."""
    file.seek(14)
    header = file.read(16)
    return header[10] if header[0] == 12 else header[14]


def _upright(image: Image.Image, mode: str, channels: tuple[int, ...]) -> UInt8Array:
    """Returns the upright pixels in a mode; they are converted in pieces to save memory."""
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    upright = np.empty(((width, height) if orientation in LYING else (height, width)) + channels, dtype=np.uint8)
    as_stored = AS_STORED.get(orientation, AS_STORED[1])(upright)
    rows = max(1, AT_ONCE // width)
    for top in range(0, height, rows):
        piece = image.crop((0, top, width, min(top + rows, height)))
        piece.info = {}  # Pillow would warn about a palette's transparency
        as_stored[top : top + rows] = np.asarray(piece if piece.mode == mode else piece.convert(mode))
    return upright
