"""Opening image files; their format, size and cost of decoding are checked from the header, before decoding."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

from exfuse.atomic_io import open_regular
from exfuse.data.tiff import HEADERS, check_tiff
from exfuse.errors import DataError, without_path

# The only decoders of Pillow that see a file, whatever its name; another one (for EPS) would run Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")

ORIENTATION = 0x0112  # the EXIF tag (EXIF 2.32)
LYING = (5, 6, 7, 8)  # its values that swap width and height

# Larger images are refused from their header.
MAX_PIXELS = 50_000_000
MAX_SIDE = 16_384

# The largest file accepted, in bytes per pixel of the largest image plus other content. A TIFF may have extra samples;
# a WebP file is read as a whole when it is opened.
BYTES_PER_PIXEL = 8
WEBP_BYTES_PER_PIXEL = 1
OTHER_BYTES = 4_000_000

JPEG, PNG, BMP, RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF"
SCAN = b"\xff\xda"  # the marker at the start of a JPEG's scan; in the scan's data, FF is followed by 00
MAX_SCANS = 100  # encoders write about ten
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)  # frame markers
FRAMES = (0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF, *PROGRESSIVE)
ALONE = (0x00, 0x01, *range(0xD0, 0xDA))  # markers without a segment
MAX_SEGMENTS = 2_000  # before a JPEG's first scan, each of at most 64 kB
MAX_EXIF = 16  # EXIF segments; Pillow joins them in quadratic time
WINDOW = 4_096  # bytes in which the next segment must begin
MAX_CHUNKS = 100_000  # in a PNG; encoders store the pixels in chunks of 8 kB or more
PNG_HEADER = (b"IHDR", b"PLTE", b"acTL", b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that describe the whole image
ANIMATED = 2  # a flag in WebP's extended header
PLAIN_BMP = (0, 3)  # codes for no compression; Pillow decompresses others in Python, byte by byte

# Exceptions that Pillow raises on files that are not images or are truncated.
BROKEN = (
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


@contextmanager
def open_image(
    source: Path | IO[bytes], max_pixels: int = MAX_PIXELS, kind: str = "image", name: object = None
) -> Iterator[ImageFile.ImageFile]:
    """Opens an image file that has one of `FORMATS` and is within the limits; the block decodes its pixels.

    Args:
        source: A path, or a file open for reading in binary mode, which is read from its current position.
        max_pixels: Largest number of pixels; a value above the default also lifts the limit on the sides.
        kind: Word for the file in errors.
        name: Name of the file in errors; by default its path, or the name of the open file.

    Raises:
        DataError: If the file is missing, broken or too large, also when the block finds this out.
    """
    name = name or (source if isinstance(source, Path) else name_of(source))
    # An open file may be a pipe or a network response, so it is read until its end or until it exceeds the limit.
    limit = max_pixels * BYTES_PER_PIXEL + OTHER_BYTES
    with (
        data_errors(name, kind),
        open_regular(source) if isinstance(source, Path) else io.BytesIO(source.read(limit + 1)) as file,
    ):
        check_file(name, file, max_pixels)
        file.seek(0)
        with _pillow_limit(max_pixels), Image.open(file, formats=FORMATS) as image:
            _check_size(name, image.size, max_pixels)
            yield image


def name_of(file: object) -> str:
    """Returns the name of an open file for errors."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name else "the image"


def image_header(path: Path) -> tuple[tuple[int, int], int]:
    """Returns an image's upright (height, width) and its EXIF orientation, without decoding it.

    Raises:
        DataError: See `open_image`.
    """
    with data_errors(path, "image"), open_regular(path) as file:
        check_file(path, file, MAX_PIXELS)
        file.seek(0)
        is_png = file.read(len(PNG)) == PNG
        file.seek(0)
        with Image.open(_without_pixels(file) if is_png else file, formats=FORMATS) as image:
            _check_size(path, image.size, MAX_PIXELS)
            # Not a PNG's own `getexif`, which decodes the image to find a tag behind the pixels.
            orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
            # Pillow reports the upright size of a TIFF already.
            lies = orientation in LYING and image.format != "TIFF"
            return image.size if lies else image.size[::-1], orientation


@contextmanager
def data_errors(name: object, kind: str = "image") -> Iterator[None]:
    """Turns exceptions about a missing or broken file into a `DataError` that begins with its name."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such {kind}") from error
    except BROKEN as error:
        raise DataError(f"{name}: not a readable {kind} ({without_path(error)})") from error


def check_file(name: object, file: IO[bytes], max_pixels: int) -> None:
    """Checks a file's size and headers before it is decoded.

    Args:
        name: The file's name in errors.
        file: The file; its position is not restored.
        max_pixels: Largest number of pixels.

    Raises:
        DataError: If it is too large, would take too long to decode, or cannot be decoded exactly.
        ValueError: If it is broken; also other exceptions in `BROKEN`.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(34)
    limit = max_pixels * (WEBP_BYTES_PER_PIXEL if start.startswith(RIFF) else BYTES_PER_PIXEL) + OTHER_BYTES
    if size > limit:
        raise DataError(f"{name}: {size:,} bytes is over the limit of {limit:,}")
    if start.startswith(JPEG):
        _check_jpeg(name, file)
    elif start.startswith(PNG):
        if any(number == MAX_CHUNKS for number, _ in enumerate(_chunks(file))):
            raise DataError(f"{name}: a PNG with more than {MAX_CHUNKS:,} chunks")
    elif start.startswith(RIFF):
        if start[12:16] == b"VP8X" and start[20] & ANIMATED:
            raise DataError(f"{name}: animated WebP files are not supported; save a single frame")
    elif start.startswith(BMP):
        if start[14] >= 40 and int.from_bytes(start[30:34], "little") not in PLAIN_BMP:
            raise DataError(f"{name}: compressed BMP files are not supported; save it as PNG")
    elif start[:4] in HEADERS:
        check_tiff(name, file)
    else:
        raise ValueError(f"not one of {', '.join(FORMATS)}")


def _check_jpeg(name: object, file: IO[bytes]) -> None:
    """Checks the segments before the first scan, and the number of scans: each can be short but slow to decode."""
    position, components, exif_segments = 2, 0, 0
    for _ in range(MAX_SEGMENTS):
        file.seek(position)
        window = file.read(WINDOW)
        segment = window[window.index(b"\xff") :].lstrip(b"\xff")
        marker, length, content = segment[0], int.from_bytes(segment[1:3]), segment[3:]
        position += len(window) - len(segment) + 1
        if marker == SCAN[1]:
            # A progressive JPEG has several scans, and so has one that stores its channels one after the other.
            if content[0] < components and file.seek(0) == 0 and file.read().count(SCAN) > MAX_SCANS:
                raise DataError(f"{name}: a JPEG with more than {MAX_SCANS} scans")
            return
        if marker in FRAMES:
            components = 99 if marker in PROGRESSIVE else content[5]
        exif_segments += content.startswith(b"Exif\0\0")
        if exif_segments > MAX_EXIF:
            raise DataError(f"{name}: a JPEG with more than {MAX_EXIF} EXIF segments")
        if marker not in ALONE:
            position += length
    raise DataError(f"{name}: a JPEG with more than {MAX_SEGMENTS:,} segments")


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yields the type, the start and the total length in bytes of each chunk of a PNG."""
    start = len(PNG)
    file.seek(start)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]) + 12, head[4:]
        yield kind, start, length
        start += length
        file.seek(start)


def _without_pixels(file: IO[bytes]) -> io.BytesIO:
    """Returns a PNG without its pixels: the chunks that describe the whole image, including any behind the pixels."""
    kept = [PNG]
    for kind, start, length in _chunks(file):
        if kind in PNG_HEADER:
            file.seek(start)
            kept.append(file.read(length))
    no_pixels = bytes(4) + b"IDAT"
    return io.BytesIO(b"".join([*kept, no_pixels, zlib.crc32(b"IDAT").to_bytes(4)]))


def _check_size(name: object, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    max_side = MAX_SIDE if max_pixels <= MAX_PIXELS else max_pixels
    if width * height > max_pixels or max(width, height) > max_side:
        raise DataError(
            f"{name}: {width} x {height} pixels is over the limit of {max_pixels:,} pixels or {max_side:,} per side"
        )


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Raises Pillow's own limit to ours for the block, if ours is higher."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None and max_pixels > before:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
