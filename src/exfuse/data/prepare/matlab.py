"""Reading SBD's MATLAB files: a numeric matrix in a field of a struct, in level 5 of the format.

SciPy's reader can crash the process on a damaged file, and decompresses everything. This reader limits what it
decompresses, and reads only the requested field. The format is described in "MAT-File Format", The MathWorks,
chapter 1.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

MAX_INFLATED = 16 * 2**20  # bytes of a decompressed variable; SBD's masks have at most 500 x 500 pixels

HEADER = 128  # bytes; the last two determine the byte order
MATRIX, COMPRESSED = 14, 15  # types of elements; the others used here are arrays of numbers:
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
STRUCT, NUMERIC_CLASSES = 2, range(6, 16)  # classes of matrices
COMPLEX = 0x0800


def read_field(content: bytes, variable: str, field: str) -> npt.NDArray[np.generic]:
    """Returns a real, full matrix in a field of a struct, with the numeric type that is stored.

    Args:
        content: The file's content.
        variable: Name of a 1 x 1 struct.
        field: Name of its field.

    Raises:
        ValueError: If the field does not exist, or the file is damaged, too large or not a MATLAB 5 file.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("not a MATLAB 5 file")
    try:
        for kind, data in _elements(memoryview(content)[HEADER:], order):
            if kind == COMPRESSED:
                kind, data = next(_elements(_inflate(data), order))
            if kind == MATRIX and _name(data, order) == variable.encode():
                return _numbers(_field(data, order, field.encode()), order)
    except (struct.error, zlib.error, StopIteration) as error:
        raise ValueError(f"damaged: {str(error) or 'something is missing'}") from error
    raise ValueError(f"no variable {variable}")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields the type and content of each of a sequence of elements."""
    at = 0
    while at < len(data):
        first, size = struct.unpack_from(f"{order}II", data, at)
        if first >> 16:  # a small element: up to four bytes, stored in place of their number
            kind, size, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
        else:
            kind, start = first, at + 8
            end = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data) or (first >> 16 and size > 4):
            raise ValueError("cut off")
        yield kind, data[start : start + size]
        at = end


def _inflate(data: memoryview) -> memoryview:
    inflater = zlib.decompressobj()
    content = inflater.decompress(data, MAX_INFLATED)
    if not inflater.eof:
        raise ValueError(f"more than {MAX_INFLATED:,} bytes, or cut off")
    return memoryview(content)


def _first(count: int, elements: Iterator[tuple[int, memoryview]]) -> list[tuple[int, memoryview]]:
    found = list(islice(elements, count))
    if len(found) < count:
        raise ValueError("cut off")
    return found


def _name(matrix: memoryview, order: str) -> bytes:
    _, _, (_, name) = _first(3, _elements(matrix, order))
    return bytes(name)


def _field(matrix: memoryview, order: str, field: bytes) -> memoryview:
    elements = _elements(matrix, order)
    (_, flags), shape, _ = _first(3, elements)
    if _flags(flags, order) & 0xFF != STRUCT or _shape(*shape, order) != (1, 1):
        raise ValueError("not a struct of one element")
    (_, length), (_, names) = _first(2, elements)
    width = int.from_bytes(length, "little" if order == "<" else "big")
    for start in range(0, len(names), max(width, 1)):
        _, data = next(elements)
        if bytes(names[start : start + width]).rstrip(b"\0") == field:
            return data
    raise ValueError(f"no field {field.decode()}")


def _numbers(matrix: memoryview, order: str) -> npt.NDArray[np.generic]:
    (_, flags), shape, _, (kind, data) = _first(4, _elements(matrix, order))
    what = _flags(flags, order)
    if what & 0xFF not in NUMERIC_CLASSES or what & COMPLEX or kind not in NUMBERS:
        raise ValueError("not a full matrix of real numbers")
    return np.frombuffer(data, f"{order}{NUMBERS[kind]}").reshape(_shape(*shape, order), order="F")


def _flags(data: memoryview, order: str) -> int:
    flags: int = struct.unpack_from(f"{order}I", data)[0]
    return flags


def _shape(kind: int, data: memoryview, order: str) -> tuple[int, ...]:
    if kind not in (5, 6) or len(data) != 8:
        raise ValueError("not a matrix of two dimensions")
    shape: tuple[int, ...] = struct.unpack(f"{order}II", data)
    return shape
