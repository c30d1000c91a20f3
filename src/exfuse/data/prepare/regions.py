"""COCO's two forms of a region, polygons and run lengths, as pixels.

The same to the pixel as pycocotools draws them (`rleFrPoly`, `rleFrString` and `rleDecode` of its maskApi.c), whose C
trusts sizes, counts and coordinates, and ends the process where they are wrong.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from exfuse.data.image_files import MAX_SIDE

BoolArray = npt.NDArray[np.bool_]

CORNERS = 3  # that a polygon has at least
MAX_BOUNDARY = 1_000_000  # pixels that the sides of a region's polygons pass through
SCALE = 5  # points of a side within a pixel
BITS, MORE, SIGN = 5, 32, 16  # of a character of packed run lengths: digits, and two flags
MAX_DIGITS = 6  # of a number


def draw_region(shape: Any, height: int, width: int) -> BoolArray:
    """Returns which pixels of an image a segmentation covers, `(H, W)`.

    Args:
        shape: COCO's `segmentation`: a list of polygons, or run lengths as a list or packed into text.
        height: Of the image.
        width: Of the image.

    Raises:
        ValueError: If it is neither, or does not fit the image.
    """
    if isinstance(shape, dict):
        if shape.get("size") != [height, width]:
            raise ValueError(f"its size is not that of the image, {height} x {width}")
        counts = shape.get("counts")
        return _fill(_unpack(counts) if isinstance(counts, str) else counts, height, width)
    if not isinstance(shape, list) or not shape or any(not isinstance(polygon, list) for polygon in shape):
        raise ValueError("not a list of polygons")
    if any(len(polygon) % 2 or not set(map(type, polygon)) <= {int, float} for polygon in shape):
        raise ValueError("a polygon is not an even number of coordinates")
    if not all(np.abs(np.array(polygon, dtype=np.float64)).max(initial=0) <= 2 * MAX_SIDE for polygon in shape):
        raise ValueError(f"a polygon has coordinates beyond {2 * MAX_SIDE:,}")
    if boundary_of(shape) > MAX_BOUNDARY:
        raise ValueError(f"its polygons' boundaries are longer than {MAX_BOUNDARY:,} pixels")
    region = np.zeros((height, width), dtype=bool)
    for polygon in shape:
        if len(polygon) >= 2 * CORNERS:  # others have no area
            region |= _fill(_runs_of_polygon(polygon, height, width), height, width)
    return region


def boundary_of(shape: Any) -> float:
    """Returns how many pixels the sides of a region's polygons pass through, and so what it takes to draw them."""
    if isinstance(shape, dict):
        return 0.0
    corners = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in shape]
    return float(sum(np.abs(np.roll(one, -1, axis=0) - one).max(axis=1).sum() for one in corners if len(one)))


def _fill(counts: Any, height: int, width: int) -> BoolArray:
    """Returns the pixels of runs down the columns, one after the other, of which every second is in the region."""
    if not isinstance(counts, list) or set(map(type, counts)) != {int}:
        raise ValueError("the run lengths are not whole numbers")
    if min(counts) < 0 or sum(counts) != height * width:
        raise ValueError(f"the run lengths are not those of {height} x {width} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _unpack(text: str) -> list[int]:
    """Returns packed run lengths: digits to the base of 32, the lowest first.

    From the fourth number on they are differences to the last but one.
    """
    counts: list[int] = []
    number = place = 0
    for character in text:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 2 * MORE or place > MAX_DIGITS:
            raise ValueError("the run lengths are not packed as COCO's")
        number |= (digit % MORE) << (BITS * place)
        place += 1
        if digit < MORE:
            if digit & SIGN:
                number -= 1 << (BITS * place)
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = place = 0
    if place:
        raise ValueError("the run lengths are cut off")
    return counts


def _runs_of_polygon(polygon: list[float], height: int, width: int) -> list[int]:
    """Returns the run lengths of the pixels whose middle is within a polygon."""
    corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    x, y = _points_of_sides(np.trunc(SCALE * corners + 0.5).astype(np.int64))
    # Where the boundary passes from one column of points to the next, and that is the middle of one of pixels.
    passes = np.flatnonzero(x[1:] != x[:-1])
    column = (np.minimum(x[passes], x[passes + 1]) + 0.5) / SCALE - 0.5
    row = np.ceil(np.clip((np.minimum(y[passes], y[passes + 1]) + 0.5) / SCALE - 0.5, 0, height))
    kept = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    # There the region begins or ends.
    changes = np.sort((column[kept] * height + row[kept]).astype(np.int64))
    runs: list[int] = np.diff(changes, prepend=0, append=height * width).tolist()
    return runs


def _points_of_sides(corners: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the x and the y of points that lie densely on a polygon's sides, in their order; both ends of each."""
    ends = np.roll(corners, -1, axis=0)
    lengths = np.abs(ends - corners)
    steps = lengths.max(axis=1)
    is_wide = lengths[:, 0] >= lengths[:, 1]
    # Each side is followed upwards along its longer direction, so that it is the same in both neighbours' polygons.
    turned = np.where(is_wide, corners[:, 0] > ends[:, 0], corners[:, 1] > ends[:, 1])
    start, end = np.where(turned[:, None], ends, corners), np.where(turned[:, None], corners, ends)
    slope = (end - start) / np.maximum(steps, 1)[:, None]
    side = np.repeat(np.arange(len(corners)), steps + 1)
    along = np.arange(len(side)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    along = np.where(turned[side], steps[side] - along, along)
    short = np.where(is_wide, 1, 0)[side]
    off = np.trunc(start[side, short] + slope[side, short] * along + 0.5).astype(np.int64)
    x = np.where(is_wide[side], start[side, 0] + along, off)
    y = np.where(is_wide[side], off, start[side, 1] + along)
    return x, y
