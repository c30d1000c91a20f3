"""Checking a TIFF file's first directory before a decoder sees the file (TIFF 6.0; BigTIFF)."""

import struct
from typing import IO, Any

from exfuse.errors import DataError

# Tags, by their names in TIFF 6.0.
WIDTH, LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, PLANAR_CONFIGURATION = 273, 277, 278, 284
COLOR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, INK_SET = 320, 322, 323, 324, 332
SAMPLE_FORMAT, YCBCR_SUBSAMPLING = 339, 530
NEXT_DIRECTORY = 0  # not a tag, but stored with them: the offset of the next directory

HEADERS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<"}  # the last is BigTIFF
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types BYTE, SHORT, LONG and LONG8
MAX_VALUES = 768  # read per tag: a map of 256 colours

# Compressions whose decoders need only the memory of a strip, which excludes LZMA, old-style JPEG and WebP.
RAW, JPEG = 1, 7
COMPRESSIONS = (RAW, 2, 3, 4, 5, JPEG, 8, 32773, 32946, 50000)  # CCITT, LZW, JPEG, Deflate, PackBits, Zstandard
CMYK, YCBCR = 5, 6
PHOTOMETRICS = (0, 1, 2, 3, CMYK, YCBCR)  # grey from white or black, RGB, palette
MAX_TILE = 1 << 20  # pixels that a tile may have even if the image is smaller


def check_tiff(name: object, file: IO[bytes]) -> None:
    """Checks that an image can be decoded exactly and completely, with memory in proportion to its size.

    Args:
        name: The file's name in errors.
        file: The file; its position is not restored.

    Raises:
        DataError: If it cannot; the message contains the reason.
        ValueError: If the directory is broken; also `struct.error`, `OSError`, `KeyError`.
    """
    tags, counts = _read_tags(file)
    if tags[NEXT_DIRECTORY] != (0,):
        raise DataError(
            f"{name}: TIFF files with several images (pages, or levels of a pyramid) are not supported; save a single "
            "image as PNG"
        )
    reason = _colours_unknown(tags) or _pieces_wrong(tags, counts)
    if reason:
        raise DataError(f"{name}: TIFF files with {reason} are not supported; save it as PNG with 8 bits per channel")


def _first(tags: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    return tags.get(tag, (default,))[0]


def _colours_unknown(tags: dict[int, tuple[int, ...]]) -> str:
    """Returns a property of the samples that programs interpret in different ways; empty if there is none."""
    compression, photometric = _first(tags, COMPRESSION, RAW), _first(tags, PHOTOMETRIC, -1)
    samples, bits = _first(tags, SAMPLES_PER_PIXEL, 1), set(tags.get(BITS_PER_SAMPLE, (1,)))
    if not (bits <= {1, 2, 4, 8} if samples == 1 else bits == {8}):
        return f"{max(bits)} bits per sample"
    if set(tags.get(SAMPLE_FORMAT, (1,))) != {1}:
        return "samples that are not unsigned integers"
    if compression not in COMPRESSIONS:
        return f"the compression {compression}"
    if photometric not in PHOTOMETRICS:
        return f"the photometric interpretation {photometric}"
    if photometric == CMYK and (compression == JPEG or _first(tags, INK_SET, 1) != 1):
        return "inks that may not be CMYK"
    if photometric == YCBCR and compression == RAW and tags.get(YCBCR_SUBSAMPLING) != (1, 1):
        return "subsampled colours and no compression"
    # A colour map has 16 bits by definition; its colours have 8 if the lower bits repeat the upper ones or are zero.
    if any(value & 255 not in (0, value >> 8) for value in tags.get(COLOR_MAP, ())):
        return "a colour map of 16 bits"
    return ""


def _pieces_wrong(tags: dict[int, tuple[int, ...]], counts: dict[int, int]) -> str:
    """Returns what is wrong with the strips or tiles, each of which is decoded as a whole; empty if nothing is."""
    width, height = tags[WIDTH][0], tags[LENGTH][0]
    if TILE_OFFSETS in tags:
        columns, rows, pieces = tags[TILE_WIDTH][0], tags[TILE_LENGTH][0], counts[TILE_OFFSETS]
    else:
        columns, rows, pieces = width, min(height, _first(tags, ROWS_PER_STRIP, height)), counts[STRIP_OFFSETS]
    if not 0 < columns * rows <= max(width * height, MAX_TILE):
        return f"tiles of {columns} x {rows} pixels"
    planes = _first(tags, SAMPLES_PER_PIXEL, 1) if _first(tags, PLANAR_CONFIGURATION, 1) == 2 else 1
    expected = -(-width // columns) * -(-height // rows) * planes
    return "" if pieces == expected else f"{pieces} strips or tiles instead of {expected}"


def _read_tags(file: IO[bytes]) -> tuple[dict[int, tuple[int, ...]], dict[int, int]]:
    """Returns the values of all integer tags, and the number of values of every tag."""
    file.seek(0)
    header = file.read(4)
    order, is_big = HEADERS[header], header[2] == ord("+")
    number, entry, offset = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    file.seek(8 if is_big else 4)
    file.seek(_unpack(file, order + offset)[0])
    entries = [_unpack(file, order + entry) for _ in range(min(_unpack(file, order + number)[0], 1 << 16))]
    tags = {NEXT_DIRECTORY: _unpack(file, order + offset)}
    counts: dict[int, int] = {}
    for tag, kind, count, value in entries:
        if tag in counts:
            raise ValueError(f"the tag {tag} appears twice")
        counts[tag] = count
        if kind not in INTEGERS or not count:
            continue
        form = f"{order}{min(count, MAX_VALUES)}{INTEGERS[kind]}"
        if count * struct.calcsize(INTEGERS[kind]) <= len(value):
            tags[tag] = struct.unpack(form, value[: struct.calcsize(form)])
        else:
            file.seek(struct.unpack(order + offset, value)[0])
            tags[tag] = _unpack(file, form)
    return tags, counts


def _unpack(file: IO[bytes], form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
