"""Drawing COCO's two kinds of region, polygons and run lengths, as pixels.

The result equals that of pycocotools to the pixel (`rleFrPoly`, `rleFrString` and `rleDecode` in its maskApi.c). Its C
code trusts sizes, counts and coordinates, and crashes the process if they are wrong.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from exfuse.data.image_files import MAX_SIDE

BoolArray = npt.NDArray[np.bool_]

CORNERS = 3  # smallest number of corners of a polygon
MAX_BOUNDARY = 1_000_000  # pixels that the sides of a region's polygons cross
SCALE = 5  # points per pixel along a side
BITS, MORE, SIGN = 5, 32, 16  # in a character of packed run lengths: bits of the digit, and two flags
MAX_DIGITS = 6  # per number


def draw_region(shape: Any, height: int, width: int) -> BoolArray:
    """Returns which pixels of an image a segmentation covers, bool `(H, W)`.

    Args:
        shape: COCO's `segmentation`: a list of polygons, or run lengths as a list or packed as text.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

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
        raise ValueError("a polygon is not a list of an even number of coordinates")
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
    """Returns how many pixels the sides of a region's polygons cross, which determines the time to draw them."""
    if isinstance(shape, dict):
        return 0.0
    corners = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in shape]
    return float(sum(np.abs(np.roll(one, -1, axis=0) - one).max(axis=1).sum() for one in corners if len(one)))


def _fill(counts: Any, height: int, width: int) -> BoolArray:
    """Returns the pixels of runs that are alternately outside and inside the region, column by column."""
    if not isinstance(counts, list) or set(map(type, counts)) != {int}:
        raise ValueError("the run lengths are not a list of integers")
    if min(counts) < 0 or sum(counts) != height * width:
        raise ValueError(f"the run lengths are negative or do not add up to {height} x {width} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _unpack(text: str) -> list[int]:
    """Unpacks run lengths from digits in base 32, the lowest first.

    From the fourth number on, the text contains the difference from the number two places before.
    """
    counts: list[int] = []
    number = place = 0
    for character in text:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 2 * MORE or place > MAX_DIGITS:
            raise ValueError("the run lengths are not packed in COCO's way")
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
    """Returns the run lengths of the pixels whose centre is inside a polygon."""
    corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    x, y = _points_of_sides(np.trunc(SCALE * corners + 0.5).astype(np.int64))
    # The points where the boundary moves to another column of points; of these, those at the centre of pixel columns.
    passes = np.flatnonzero(x[1:] != x[:-1])
    column = (np.minimum(x[passes], x[passes + 1]) + 0.5) / SCALE - 0.5
    row = np.ceil(np.clip((np.minimum(y[passes], y[passes + 1]) + 0.5) / SCALE - 0.5, 0, height))
    kept = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    # The region begins or ends at these pixels.
    changes = np.sort((column[kept] * height + row[kept]).astype(np.int64))
    runs: list[int] = np.diff(changes, prepend=0, append=height * width).tolist()
    return runs


def _points_of_sides(corners: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns x and y of points along a polygon's sides, densely and in order, including both ends of each side."""
    ends = np.roll(corners, -1, axis=0)
    lengths = np.abs(ends - corners)
    steps = lengths.max(axis=1)
    is_wide = lengths[:, 0] >= lengths[:, 1]
    # Each side is sampled in ascending order of its longer axis, so that polygons that share a side get equal points.
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
