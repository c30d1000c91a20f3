"""Uncertainty of scores, by a bootstrap over images.

The counts of an image are int64 `(3, K)`: true positives ("hits"), true pixels and predicted pixels of each class, over
labelled pixels only.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exfuse.metrics import Float64Array, ratio

Int64Array = npt.NDArray[np.int64]

# With this many, the standard deviation of an end over seeds is 0.4 % of the interval's half-width.
DRAWS = 100_000
DRAWS_AT_ONCE = 500
SEED = 0  # fixed, so that the same counts always have the same interval
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: Lower end; nan if nothing was counted.
        high: Upper end; nan if nothing was counted.
    """

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Returns whether a value is within the interval, including its ends; True if the interval is nan."""
        return not (value < self.low or value > self.high)

    def to_json(self) -> dict[str, Any]:
        """Returns the ends (null for nan) and the method."""
        low, high = (None if math.isnan(end) else end for end in (self.low, self.high))
        return {"low": low, "high": high, "level": LEVEL, "draws": DRAWS, "method": "bootstrap over images"}


def image_counts(confusion: Int64Array) -> Int64Array:
    """Returns an image's counts `(3, K)` from its confusion matrix `(K, K)`, whose rows are the true classes."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def mean_iou(counts: npt.NDArray[np.number]) -> Float64Array:
    """Returns the mean IoU over the classes that occur in the ground truth.

    Args:
        counts: `(..., 3, K)`, summed over the images of each set.

    Returns:
        float64 `(...)`, 0 to 1; nan where no class occurs.
    """
    hits, true, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    present = true > 0
    scores = np.where(present, ratio(hits, true + predicted - hits, present), 0.0)
    return ratio(scores.sum(axis=-1), present.sum(axis=-1).astype(np.float64), present.any(axis=-1))


def mean_iou_interval(counts: Int64Array) -> Interval:
    """Returns the bootstrap interval of the mean IoU, for images drawn with replacement.

    Args:
        counts: `(N, 3, K)`, of N images.
    """
    return _interval(_drawn_scores(counts[None])[0])


def difference_interval(first: Int64Array, second: Int64Array) -> Interval:
    """Returns the interval of the mean IoU of `second` minus that of `first`, averaged over S pairs of runs.

    With one pair this is the bootstrap interval over images, with the same draws for both runs. It applies only to
    these two runs.

    With more pairs it also covers other seeds. Their half-width is the standard error of the mean of the S differences
    times Student's t with S - 1 degrees of freedom. The half-width for other images is that of the bootstrap of the
    mean difference, without the part that images contribute to each seed separately, because the variance over seeds
    already contains that part.

    Args:
        first: `(S, N, 3, K)`, of S runs on N images.
        second: Counts of the same images in the same order; run s is paired with run s of `first`.
    """
    pairs = len(first)
    scores = _drawn_scores(np.concatenate([first, second]))
    draws = scores[pairs:] - scores[:pairs]
    images = _interval(draws.mean(axis=0))
    if pairs == 1 or math.isnan(images.low):
        return images
    observed = mean_iou(second.sum(axis=1)) - mean_iou(first.sum(axis=1))
    mean, shared = float(observed.mean()), _shared_by_seeds(draws, observed)
    seed_error = student_t(LEVEL, pairs - 1) * float(observed.std(ddof=1)) / math.sqrt(pairs)
    below, above = (joined(seed_error, shared * abs(end - mean), pairs) for end in (images.low, images.high))
    return Interval(mean - below, mean + above)


def joined(seed_error: float, image_error: float, pairs: int) -> float:
    """Returns the half-width for the sum of two independent errors, the first estimated from S pairs of runs.

    Errors of known variance add up as `sqrt(a^2 + b^2)`. With few pairs, Student's t makes a so wide that this formula,
    like sampling from the sum of both distributions, covers up to 99 % instead of 95 %. The exponent therefore grows as
    S decreases: `(a^p + b^p)^(1/p)` with `p = 2 (S - 1) / (S - 2)`. For normal errors of any two sizes, this covers
    94.8 to 96.0 % with three or more pairs. With two pairs it is the maximum of a and b and covers 95.0 to 97.7 %; no
    half-width of at least a and at least b can cover less. `tests/unit/test_bootstrap.py` computes these figures.

    Args:
        seed_error: The half-width a, a standard error times Student's t with S - 1 degrees of freedom.
        image_error: The half-width b.
        pairs: S, at least 2.
    """
    order = 2 * (pairs - 1) / (pairs - 2) if pairs > 2 else math.inf
    return float(np.linalg.norm([seed_error, image_error], order))


def student_t(level: float, degrees: int) -> float:
    """Returns the t for which `|T| < t` has probability `level` under Student's distribution.

    With n degrees of freedom, the probability of `|T| < sqrt(n) tan(x)` is a finite sum in sin x and cos x (Abramowitz
    and Stegun, 26.7.3 and 26.7.4). It increases from 0 to 1 as x goes from 0 to pi / 2; bisection finds x.

    Args:
        level: Probability, 0 to below 1.
        degrees: Degrees of freedom, 1 or more.
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


def _shared_by_seeds(draws: Float64Array, observed: Float64Array) -> float:
    """Returns the fraction of the bootstrap's width that is due to image effects common to all seeds, 0 to 1.

    The variance of a mean over S seeds is that of the common effect plus 1 / S of the variance specific to a seed.

    Args:
        draws: Bootstrapped differences `(S, draws)`.
        observed: Differences on the original images, `(S,)`.
    """
    total = np.nanvar(draws.mean(axis=0))
    specific = np.nanmean((draws - observed[:, None]).var(axis=0, ddof=1)) / len(draws)
    return math.sqrt(max(0.0, total - specific) / total) if total else 0.0


def _drawn_scores(counts: Int64Array) -> Float64Array:
    """Returns the mean IoU `(S, DRAWS)` of S runs on sets of images drawn with replacement, the same sets for all runs.

    Args:
        counts: `(S, N, 3, K)`.
    """
    runs, images = counts.shape[:2]
    rng = np.random.default_rng(SEED)
    flat = counts.reshape(runs, images, -1).astype(np.float64)  # exact: the pixels of a set are far below 2 ** 53
    offsets = images * np.arange(DRAWS_AT_ONCE)[:, None]
    scores = []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        drawn = offsets + rng.integers(images, size=(DRAWS_AT_ONCE, images))
        times = np.bincount(drawn.ravel(), minlength=offsets.size * images).reshape(DRAWS_AT_ONCE, images)
        scores.append(mean_iou((times.astype(np.float64) @ flat).reshape(runs, DRAWS_AT_ONCE, *counts.shape[2:])))
    return np.concatenate(scores, axis=1)


def _interval(values: Float64Array) -> Interval:
    known = values[~np.isnan(values)]
    if not known.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
