"""From Pillow's image to an array: the one rule of which modes and depths are understood to the bit."""

from collections.abc import Callable
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from exfuse.data.image_files import LYING, MAX_PIXELS, ORIENTATION, check_file, data_errors
from exfuse.errors import DataError

UInt8Array = npt.NDArray[np.uint8]

# Pillow's modes that are read, each with the ways of storing it (Pillow's raw modes) from which it is had without loss:
# at most 8 bits a channel, of which other channels than the colours are left out. Not among them: 16 bits, which Pillow
# cuts or clips to 8 ("RGB;16B", "I;16"), 5 bits ("BGR;15"), which readers stretch in different ways, colours multiplied
# by alpha ("RGBa"), and the modes whose colours Pillow does not turn into RGB exactly (LAB, HSV).
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

# Those of a mask, whose stored numbers are what is wanted: none that turns or stretches them.
STORED_INDICES = {"L": {"L"}, "P": {"P", "P;1", "P;2", "P;4"}}
LOSSLESS = ("PNG", "BMP", "TIFF")
AT_ONCE = 1 << 18  # pixels converted at a time

# The view of an upright array that is the stored one, by EXIF orientation; others mean 1.
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
    """Returns an image as RGB uint8 `(H, W, 3)`, turned upright by its EXIF orientation.

    Transparency is left out: what is returned are the colours that are stored, also where they are not to be seen.

    Args:
        image: Any image of Pillow's; decoded if it is not yet.
        name: Named in errors.

    Raises:
        DataError: If its mode or depth is not understood to the bit.
        OSError: If it cannot be decoded; also others of `BROKEN`.
    """
    _check_mode(image, name, STORED)
    return _upright(image, "RGB", (3,))


def to_indices(image: ImageFile.ImageFile, name: object) -> UInt8Array:
    """Returns the numbers that an image file stores, uint8 `(H, W)`, without looking at its palette.

    Args:
        image: A file as `open_image` yields it.
        name: Named in errors.

    Raises:
        DataError: If they are not of 8 bits, or of fewer in a palette, or are not stored without loss.
        OSError: If it cannot be decoded; also others of `BROKEN`.
    """
    if image.format not in LOSSLESS or image.info.get("compression") == "jpeg":
        raise DataError(
            f"{name}: a mask is not kept in a {image.format} file of this kind, which changes labels; use PNG"
        )
    _check_mode(image, name, STORED_INDICES)
    return _upright(image, image.mode, ())


def picture_to_rgb(image: Image.Image) -> UInt8Array:
    """Returns a Pillow image that a caller opened or made as `to_rgb` does.

    A file that was opened and not yet decoded is held to the same rules as a path. Of one that was decoded, and of
    an image that never was a file, only the mode can be checked.

    Raises:
        DataError: If it is broken, or its mode or depth is not understood to the bit.
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
        # Of JPEG files with several images (MPO) the first is the photograph (CIPA DC-007).
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError(f"{name}: a file of several images is not read; save the one that is meant")
        raw_modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args}
        is_known = is_known and raw_modes <= stored[image.mode]
        if image.mode == "CMYK" and image.format == "JPEG":
            is_known &= "adobe" in image.info  # else nobody says whether 255 is all of an ink or none
        if image.mode in ("1", "L") and image.format == "BMP" and image.fp is not None:
            is_known &= _bits_of_bmp(image.fp) == (1 if image.mode == "1" else 8)
    if not is_known:
        mode = f"mode {image.mode}" + "".join(f", stored as {raw}" for raw in sorted(raw_modes - {image.mode}))
        if stored is STORED:
            raise DataError(
                f"{name}: an image of {mode} is not read, as its values have no certain meaning in 8 bits; save it as "
                "8-bit greyscale or RGB"
            )
        raise DataError(
            f"{name}: a mask must be an 8-bit palette or greyscale image whose values are class indices; this one has "
            f"{mode}"
        )


def _bits_of_bmp(file: IO[bytes]) -> int:
    """Returns the bits of a pixel; Pillow takes a palette of black and white for one, and greys for eight."""
    file.seek(14)
    header = file.read(16)
    return header[10] if header[0] == 12 else header[14]


def _upright(image: Image.Image, mode: str, channels: tuple[int, ...]) -> UInt8Array:
    """Returns the pixels in a mode, piece by piece, so that little is in memory but the image and the result."""
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    upright = np.empty(((width, height) if orientation in LYING else (height, width)) + channels, dtype=np.uint8)
    as_stored = AS_STORED.get(orientation, AS_STORED[1])(upright)
    rows = max(1, AT_ONCE // width)
    for top in range(0, height, rows):
        piece = image.crop((0, top, width, min(top + rows, height)))
        piece.info = {}  # of a palette's transparency Pillow would warn
        as_stored[top : top + rows] = np.asarray(piece if piece.mode == mode else piece.convert(mode))
    return upright
