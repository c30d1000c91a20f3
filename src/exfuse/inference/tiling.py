"""Large images in overlapping tiles, labelled strip by strip."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from exfuse.data.samples import UInt8Array
from exfuse.errors import ConfigError
from exfuse.inference.engines.base import Engine, Float32Array
from exfuse.models.options import PAD_MULTIPLE


class Tiling(NamedTuple):
    """How an image is cut.

    Attributes:
        tile_size: Longest side of a tile in pixels.
        overlap: How many pixels neighbours share; there their scores are blended linearly.
    """

    tile_size: int = 1024
    overlap: int = 192

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If neighbours of neighbours would overlap, too.
        """
        if self.overlap < 0 or self.step < max(PAD_MULTIPLE, self.overlap):
            raise ConfigError(
                f"tiles of {self.tile_size} pixels with an overlap of {self.overlap}: a tile must be longer than that "
                f"by the overlap again, rounded up to {PAD_MULTIPLE}, and by {PAD_MULTIPLE} at least"
            )

    @property
    def step(self) -> int:
        """How far apart tiles begin at most; at least the overlap, so that no pixel is in three along a side."""
        return (self.tile_size - self.overlap) // PAD_MULTIPLE * PAD_MULTIPLE


def label_strips(engine: Engine, image: UInt8Array, tiling: Tiling) -> Iterator[UInt8Array]:
    """Labels an image from top to bottom.

    The image is cut into a grid of tiles, all of one size but for the last row and column, which may be smaller. Each
    tile is computed alone; a pixel in several of them gets the mean of their scores, weighted by how far it is from
    each one's border. A pixel in one tile alone has that tile's label. Tiles begin at multiples of the network's
    largest stride, so that it sees in them what it sees in the whole image, and a label is that of the whole image
    wherever the tiles that have it see all that its label depends on.

    Besides the labels of a row of tiles, the memory taken is that of the scores of one tile and of what is shared with
    tiles to come: of the row below 4 * K * overlap * W bytes, and of the tile beside as much as a tile is high.

    Args:
        engine: What computes the tiles.
        image: RGB, uint8, `(H, W, 3)`.
        tiling: How to cut.

    Yields:
        Labels, uint8 `(h, W)`, the strips adding up to H rows.
    """
    tiling.check()
    rows, columns = (tile_spans(side, tiling) for side in image.shape[:2])
    above = np.empty(0, dtype=np.float32)  # what the row above says of the rows that this one shares with it
    for place, (top, bottom) in enumerate(rows):
        done = (rows[place + 1][0] if place + 1 < len(rows) else bottom) - top
        labels = np.empty((done, image.shape[1]), dtype=np.uint8)
        for left, scores in _score_row(engine, image[top:bottom], columns):
            right = left + scores.shape[2]
            if place:
                _blend_into(scores, above[:, :, left:right], axis=1)
            for row in range(done):  # argmax makes a copy of what it is given, and numbers of eight bytes
                labels[row, left:right] = scores[:, row].argmax(axis=0)
            if place + 1 < len(rows):
                if not above.size:
                    above = np.empty((len(scores), tiling.overlap, image.shape[1]), dtype=np.float32)
                above[:, :, left:right] = scores[:, done:]
            del scores  # before the next tile is computed
        yield labels


def tile_spans(side: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Returns first and end of each tile along a side; neighbours share the overlap, exactly."""
    if side <= tiling.tile_size:
        return [(0, side)]
    count = math.ceil((side - tiling.overlap) / tiling.step)
    even = max((side - tiling.overlap) / count, tiling.overlap)  # no pixel is in three
    step = math.ceil(even / PAD_MULTIPLE) * PAD_MULTIPLE
    starts = range(0, side - tiling.overlap, step)
    return [(start, min(start + step + tiling.overlap, side)) for start in starts]


def _score_row(engine: Engine, band: UInt8Array, columns: list[tuple[int, int]]) -> Iterator[tuple[int, Float32Array]]:
    """Yields the scores `(K, h, w)` of a row of tiles, blended along the row, and the column each begins at."""
    before: Float32Array | None = None  # what the tile before says of the columns that this one shares with it
    for place, (left, right) in enumerate(columns):
        scores: Float32Array = engine.scores(np.ascontiguousarray(band[:, left:right])[None])[0]
        if before is not None:
            _blend_into(scores, before, axis=2)
        done = (columns[place + 1][0] if place + 1 < len(columns) else right) - left
        before = scores[..., done:].copy()
        yield left, scores[..., :done]
        del scores  # before the next tile is computed


def _blend_into(scores: Float32Array, earlier: Float32Array, axis: int) -> None:
    """Mixes into the first rows (axis 1) or columns (axis 2) of a tile what its neighbour before says of them."""
    shared = earlier.shape[axis]
    # The later tile's weight goes from 0 to 1, both left out.
    weight = np.arange(1, shared + 1, dtype=np.float32) / np.float32(shared + 1)
    if axis == 1:
        weight = weight[:, None]
    part = scores[:, :shared] if axis == 1 else scores[..., :shared]
    part *= weight
    part += (1 - weight) * earlier
