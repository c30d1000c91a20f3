"""How far a score may be off because the images could have been others: the bootstrap over images.

Counts of an image are int64 `(3, K)`: hits, true pixels and predicted pixels of each class; labelled pixels only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exfuse.metrics import Float64Array, ratio

Int64Array = npt.NDArray[np.int64]

DRAWS = 10_000
DRAWS_AT_ONCE = 500
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: Its lower end; nan where nothing was counted.
        high: Its upper end; likewise.
    """

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Returns whether a value may lie within, the ends included; nothing is left out by an unknown interval."""
        return not (value < self.low or value > self.high)

    def to_json(self) -> dict[str, Any]:
        """Returns the ends, null where they are unknown, and how they were found."""
        low, high = (None if math.isnan(end) else end for end in (self.low, self.high))
        return {"low": low, "high": high, "level": LEVEL, "draws": DRAWS, "method": "bootstrap over images"}


def image_counts(confusion: Int64Array) -> Int64Array:
    """Returns an image's counts `(3, K)` from its confusion matrix `(K, K)`, the row the true class."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def mean_iou(counts: npt.NDArray[np.number]) -> Float64Array:
    """Returns the mean IoU over the classes that occur.

    Args:
        counts: `(..., 3, K)`, of whole sets.

    Returns:
        float64 `(...)`; nan where no class occurs.
    """
    hits, true, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    present = true > 0
    scores = np.where(present, ratio(hits, true + predicted - hits, present), 0.0)
    return ratio(scores.sum(axis=-1), present.sum(axis=-1).astype(np.float64), present.any(axis=-1))


def mean_iou_interval(counts: Int64Array, seed: int = 0) -> Interval:
    """Returns the interval of the mean IoU when images are drawn anew, with replacement.

    Args:
        counts: `(N, 3, K)`, of N images.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    draws = (_drawn(counts, times) for times in _image_draws(len(counts), rng))
    return _interval(np.concatenate(list(draws)))


def difference_interval(first: Int64Array, second: Int64Array, seed: int = 0) -> Interval:
    """Returns the interval of the second's mean IoU minus the first's, averaged over S pairs of runs.

    Each draw takes N images anew, the same for all runs. With several pairs it adds what other seeds would have given:
    the standard error of the mean of the S differences times a draw from Student's t with S - 1 degrees of freedom,
    which is wide for two pairs, as little is known then. With one pair it speaks of the images alone.

    Args:
        first: `(S, N, 3, K)`, of S runs on N images.
        second: Of the same images in the same order; its run s is paired with the first's run s.
        seed: Of the draws.
    """
    pairs, images = first.shape[:2]
    rng = np.random.default_rng(seed)
    draws = []
    for times in _image_draws(images, rng):
        differences = [_drawn(b, times) - _drawn(a, times) for a, b in zip(first, second, strict=True)]
        draws.append(np.mean(differences, axis=0))
    drawn = np.concatenate(draws)
    if pairs > 1:
        found = mean_iou(second.sum(axis=1)) - mean_iou(first.sum(axis=1))
        drawn = drawn + found.std(ddof=1) / math.sqrt(pairs) * rng.standard_t(pairs - 1, size=len(drawn))
    return _interval(drawn)


def _image_draws(images: int, rng: np.random.Generator) -> Iterator[Int64Array]:
    """Yields how often each image is taken, `(DRAWS_AT_ONCE, images)`, `DRAWS` rows in all."""
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        yield rng.multinomial(images, np.full(images, 1 / images), size=DRAWS_AT_ONCE)


def _drawn(counts: Int64Array, times: Int64Array) -> Float64Array:
    """Returns the mean IoU of each draw's set of images."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)  # exact: pixels of a set are far below 2 ** 53
    return mean_iou((times @ flat).reshape(len(times), *counts.shape[1:]))


def _interval(values: Float64Array) -> Interval:
    known = values[~np.isnan(values)]
    if not known.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
