"""Labelling large images strip by strip, in overlapping tiles."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from exfuse.data.samples import UInt8Array
from exfuse.errors import ConfigError
from exfuse.inference.engines.base import Engine, Float32Array
from exfuse.models.options import PAD_MULTIPLE


class Tiling(NamedTuple):
    """How an image is cut into tiles.

    Attributes:
        tile_size: Longest side of a tile in pixels.
        overlap: Number of pixels that neighbouring tiles share; their scores are blended linearly there.
    """

    tile_size: int = 1024
    overlap: int = 192

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If the overlap is negative, or some pixels would be in three tiles along a side.
        """
        if self.overlap < 0 or self.step < max(PAD_MULTIPLE, self.overlap):
            shortest = self.overlap + max(PAD_MULTIPLE, math.ceil(self.overlap / PAD_MULTIPLE) * PAD_MULTIPLE)
            raise ConfigError(
                f"tile size {self.tile_size} with overlap {self.overlap}: the overlap must be at least 0, and for this "
                f"overlap the tile size must be at least {shortest}"
            )

    @property
    def step(self) -> int:
        """Largest distance between the starts of neighbouring tiles, a multiple of `PAD_MULTIPLE`."""
        return (self.tile_size - self.overlap) // PAD_MULTIPLE * PAD_MULTIPLE


def label_strips(engine: Engine, image: UInt8Array, tiling: Tiling) -> Iterator[UInt8Array]:
    """Labels an image from top to bottom.

    The image is cut into a grid of tiles of one size; those in the last row and column may be smaller. Each tile is
    computed alone. A pixel in several tiles gets the mean of their scores, weighted by its distance from each tile's
    border. Tiles begin at multiples of the network's largest stride, so a label equals that of the whole image wherever
    its tiles contain everything that the label depends on.

    Besides the labels of a row of tiles, memory holds the scores of one tile and those shared with tiles to come:
    4 * K * overlap * W bytes for the row below, and 4 * K * overlap * (tile height) bytes for the next tile.

    Args:
        engine: Computes the tiles.
        image: RGB, uint8, `(H, W, 3)`.
        tiling: How to cut the image.

    Yields:
        Labels of the next strip, uint8 `(h, W)`; the heights add up to H.
    """
    tiling.check()
    rows, columns = (tile_spans(side, tiling) for side in image.shape[:2])
    above = np.empty(0, dtype=np.float32)  # scores from the row of tiles above, where the two rows overlap
    for place, (top, bottom) in enumerate(rows):
        done = (rows[place + 1][0] if place + 1 < len(rows) else bottom) - top
        labels = np.empty((done, image.shape[1]), dtype=np.uint8)
        for left, scores in _score_row(engine, image[top:bottom], columns):
            right = left + scores.shape[2]
            if place:
                _blend_into(scores, above[:, :, left:right], axis=1)
            for row in range(done):  # in small pieces, since argmax copies its input and returns 8-byte integers
                labels[row, left:right] = scores[:, row].argmax(axis=0)
            if place + 1 < len(rows):
                if not above.size:
                    above = np.empty((len(scores), tiling.overlap, image.shape[1]), dtype=np.float32)
                above[:, :, left:right] = scores[:, done:]
            del scores  # before the next tile is computed
        yield labels


def tile_spans(side: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Returns the start and end of each tile along a side; neighbours share exactly the overlap."""
    if side <= tiling.tile_size:
        return [(0, side)]
    count = math.ceil((side - tiling.overlap) / tiling.step)
    even = max((side - tiling.overlap) / count, tiling.overlap)  # so that no pixel is in three tiles
    step = math.ceil(even / PAD_MULTIPLE) * PAD_MULTIPLE
    starts = range(0, side - tiling.overlap, step)
    return [(start, min(start + step + tiling.overlap, side)) for start in starts]


def _score_row(engine: Engine, band: UInt8Array, columns: list[tuple[int, int]]) -> Iterator[tuple[int, Float32Array]]:
    """Yields each tile's first column and its scores `(K, h, w)`, blended along the row."""
    before: Float32Array | None = None  # scores from the previous tile, where the two tiles overlap
    for place, (left, right) in enumerate(columns):
        scores: Float32Array = engine.scores(np.ascontiguousarray(band[:, left:right])[None])[0]
        if before is not None:
            _blend_into(scores, before, axis=2)
        done = (columns[place + 1][0] if place + 1 < len(columns) else right) - left
        before = scores[..., done:].copy()
        yield left, scores[..., :done]
        del scores  # before the next tile is computed


def _blend_into(scores: Float32Array, earlier: Float32Array, axis: int) -> None:
    """Blends a previous tile's scores into the first rows (axis 1) or columns (axis 2) of a tile's scores."""
    shared = earlier.shape[axis]
    # The later tile's weight rises from 0 to 1, both excluded.
    weight = np.arange(1, shared + 1, dtype=np.float32) / np.float32(shared + 1)
    if axis == 1:
        weight = weight[:, None]
    part = scores[:, :shared] if axis == 1 else scores[..., :shared]
    part *= weight
    part += (1 - weight) * earlier
