"""Large images in overlapping tiles, labelled strip by strip. Knows no torch."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from exfuse.data.samples import UInt8Array
from exfuse.errors import ConfigError
from exfuse.inference.engines.base import Engine, Float32Array
from exfuse.models.info import PAD_MULTIPLE


class Tiling(NamedTuple):
    """How an image is cut.

    Attributes:
        tile: Longest side of a tile in pixels.
        overlap: How many pixels neighbours share; there their scores are blended linearly.
    """

    tile: int = 1024
    overlap: int = 192

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If the overlap leaves nothing that a tile has for itself.
        """
        if self.overlap < 0 or self.tile < self.overlap + max(PAD_MULTIPLE, self.overlap + 1):
            raise ConfigError(
                f"tiles of {self.tile} pixels with an overlap of {self.overlap}: a tile must be more than twice the "
                f"overlap, and {PAD_MULTIPLE} more than it"
            )


def label_strips(engine: Engine, image: UInt8Array, tiling: Tiling) -> Iterator[UInt8Array]:
    """Labels an image from top to bottom.

    The image is cut into a grid of tiles, all of one size but for the last row and column, which may be smaller. Each
    tile is computed alone; a pixel in several of them gets the mean of their scores, weighted by how far it is from
    each one's border. A pixel in one tile alone has that tile's label. Tiles begin at multiples of the network's
    largest stride, so that it sees in them what it sees in the whole image, and a label is that of the whole image
    wherever the tiles that have it see all that its label depends on.

    The memory taken is that of the scores of one row of tiles, 4 * K * tile * W bytes, of what it shares with the
    next, and of one tile in the network.

    Args:
        engine: What computes the tiles.
        image: RGB, uint8, `(H, W, 3)`.
        tiling: How to cut.

    Yields:
        Labels, uint8 `(h, W)`, the strips adding up to H rows.
    """
    tiling.check()
    rows, columns = (cut(side, tiling) for side in image.shape[:2])
    waiting: Float32Array | None = None
    for place, (top, bottom) in enumerate(rows):
        band = _score_row(engine, image[top:bottom], columns)
        if waiting is not None:
            shared = waiting.shape[1]
            share = _ramp(shared)[:, None]
            band[:, :shared] = (1 - share) * waiting + share * band[:, :shared]
        done = (rows[place + 1][0] if place + 1 < len(rows) else bottom) - top
        labels = np.empty((done, image.shape[1]), dtype=np.uint8)
        for row in range(done):  # argmax makes a copy of what it is given, and numbers of eight bytes
            labels[row] = band[:, row].argmax(axis=0)
        yield labels
        waiting = band[:, done:].copy()
        del band


def cut(side: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Returns first and end of each tile along a side; neighbours share the overlap, exactly."""
    if side <= tiling.tile:
        return [(0, side)]
    longest = (tiling.tile - tiling.overlap) // PAD_MULTIPLE * PAD_MULTIPLE
    count = math.ceil((side - tiling.overlap) / longest)
    step = math.ceil((side - tiling.overlap) / count / PAD_MULTIPLE) * PAD_MULTIPLE
    starts = range(0, side - tiling.overlap, step)
    return [(start, min(start + step + tiling.overlap, side)) for start in starts]


def _score_row(engine: Engine, band: UInt8Array, columns: list[tuple[int, int]]) -> Float32Array:
    """Returns the scores `(K, h, W)` of a row of tiles, blended along the row."""
    row: Float32Array | None = None
    for left, right in columns:
        scores: Float32Array = engine.scores(np.ascontiguousarray(band[:, left:right])[None])[0]
        if row is None:
            if len(columns) == 1:
                return scores
            row = np.empty((*scores.shape[:2], band.shape[1]), dtype=np.float32)
            row[..., :right] = scores
            known = right
            continue
        shared = known - left
        share = _ramp(shared)
        row[..., left:known] = (1 - share) * row[..., left:known] + share * scores[..., :shared]
        row[..., known:right] = scores[..., shared:]
        known = right
    assert row is not None  # noqa: S101 - every side has a tile
    return row


def _ramp(length: int) -> Float32Array:
    """Returns the later tile's share of the pixels that two neighbours share: from 0 to 1, both left out."""
    ramp: Float32Array = np.arange(1, length + 1, dtype=np.float32) / np.float32(length + 1)
    return ramp
