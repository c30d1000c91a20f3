"""How far a score may be off because the images could have been others: the bootstrap over images.

Counts of an image are int64 `(3, K)`: hits, true pixels and predicted pixels of each class; labelled pixels only.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exfuse.metrics import Float64Array, ratio

Int64Array = npt.NDArray[np.int64]

# With so many, an end varies by 0.4 % of the interval's half-width (standard deviation) from one seed to another.
DRAWS = 100_000
DRAWS_AT_ONCE = 500
SEED = 0  # part of the method, not an option: the same counts have one interval
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


def mean_iou_interval(counts: Int64Array) -> Interval:
    """Returns the interval of the mean IoU when images are drawn anew, with replacement.

    Args:
        counts: `(N, 3, K)`, of N images.
    """
    return _interval(_drawn_scores(counts[None])[0])


def difference_interval(first: Int64Array, second: Int64Array) -> Interval:
    """Returns the interval of the second's mean IoU minus the first's, averaged over S pairs of runs.

    With one pair it is the bootstrap's over images, the same draws for both runs, and speaks of these two runs alone.

    With more, other seeds are unknown as well. The standard error of the mean of the S differences, times Student's t
    with S - 1 degrees of freedom, is the half-width for them. The half-width for other images is the bootstrap's of the
    mean difference, less what images do to each seed in its own way: the seeds' differences contain that already.

    Args:
        first: `(S, N, 3, K)`, of S runs on N images.
        second: Of the same images in the same order; its run s is paired with the first's run s.
    """
    pairs = len(first)
    scores = _drawn_scores(np.concatenate([first, second]))
    draws = scores[pairs:] - scores[:pairs]
    images = _interval(draws.mean(axis=0))
    if pairs == 1 or math.isnan(images.low):
        return images
    found = mean_iou(second.sum(axis=1)) - mean_iou(first.sum(axis=1))
    mean, shared = float(found.mean()), _shared_by_seeds(draws, found)
    seed_error = student_t(LEVEL, pairs - 1) * float(found.std(ddof=1)) / math.sqrt(pairs)
    below, above = (joined(seed_error, shared * abs(end - mean), pairs) for end in (images.low, images.high))
    return Interval(mean - below, mean + above)


def joined(seed_error: float, image_error: float, pairs: int) -> float:
    """Returns the half-width for two independent errors, the one known from S pairs of runs only.

    Known ones would add up as `sqrt(a^2 + b^2)`. But Student's t makes the first so wide that this, like drawing from
    the sum of both distributions, covers up to 99 % in place of 95 %. So the exponent grows as S gets small:
    `(a^p + b^p)^(1/p)` with `p = 2 (S - 1) / (S - 2)`. For normal errors of any two sizes this covers 94.8 to 96.0 %
    with three pairs and more. With two it is the larger of both and covers 95.0 to 97.7 %; nothing that is as wide as
    each of them can cover less. `tests/unit/test_bootstrap.py` computes these figures.

    Args:
        seed_error: The half-width a, a standard error times Student's t with S - 1 degrees of freedom.
        image_error: The half-width b.
        pairs: S, at least 2.
    """
    order = 2 * (pairs - 1) / (pairs - 2) if pairs > 2 else math.inf
    return float(np.linalg.norm([seed_error, image_error], order))


def student_t(level: float, degrees: int) -> float:
    """Returns the t that the middle `level` of Student's distribution lies within.

    With n degrees of freedom, the probability of `|T| < sqrt(n) tan(x)` is a finite sum in sin x and cos x (Abramowitz
    and Stegun, 26.7.3 and 26.7.4). It grows from 0 to 1 as x goes from 0 to a right angle; halving finds x.

    Args:
        level: 0 to below 1.
        degrees: 1 or more.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """Returns the probability that |T| is below `sqrt(degrees) tan(angle)`."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _shared_by_seeds(draws: Float64Array, found: Float64Array) -> float:
    """Returns what part of the bootstrap's width is due to what the images do to all seeds alike, 0 to 1.

    Variances of a mean over S seeds add up: that of the common part, and one S-th of that of a seed's own.

    Args:
        draws: Differences `(S, draws)`.
        found: Differences of the seeds on the images as they are, `(S,)`.
    """
    whole = np.nanvar(draws.mean(axis=0))
    own = np.nanmean((draws - found[:, None]).var(axis=0, ddof=1)) / len(draws)
    return math.sqrt(max(0.0, whole - own) / whole) if whole else 0.0


def _drawn_scores(counts: Int64Array) -> Float64Array:
    """Returns the mean IoU `(S, DRAWS)` of S runs on sets of images that are drawn with replacement, alike for all.

    Args:
        counts: `(S, N, 3, K)`.
    """
    runs, images = counts.shape[:2]
    rng = np.random.default_rng(SEED)
    flat = counts.reshape(runs, images, -1).astype(np.float64)  # exact: pixels of a set are far below 2 ** 53
    rows = images * np.arange(DRAWS_AT_ONCE)[:, None]
    scores = []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        places = rows + rng.integers(images, size=(DRAWS_AT_ONCE, images))
        times = np.bincount(places.ravel(), minlength=rows.size * images).reshape(DRAWS_AT_ONCE, images)
        scores.append(mean_iou((times.astype(np.float64) @ flat).reshape(runs, DRAWS_AT_ONCE, *counts.shape[2:])))
    return np.concatenate(scores, axis=1)


def _interval(values: Float64Array) -> Interval:
    known = values[~np.isnan(values)]
    if not known.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
