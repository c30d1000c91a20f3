"""Intervals over images and runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from exfuse.evaluation import bootstrap
from exfuse.evaluation.bootstrap import (
    difference_interval,
    image_counts,
    joined,
    mean_iou,
    mean_iou_interval,
    student_t,
)
from exfuse.evaluation.compare import compare
from exfuse.metrics import ConfusionMatrix

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "ablation.csv"


def random_counts(seed: int, images: int = 40, classes: int = 5, skill: float = 0.7) -> np.ndarray:
    """Returns the counts `(N, 3, K)` of random predictions that are right with a probability of `skill`."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        target = rng.integers(0, classes, 400)
        labels = np.where(rng.random(400) < rng.normal(skill, 0.05), target, rng.integers(0, classes, 400))
        matrix = ConfusionMatrix(classes)
        matrix.update(labels, target)
        rows.append(image_counts(matrix.counts.numpy()))
    return np.stack(rows)


def test_the_mean_iou_of_counts_is_that_of_the_matrix() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 50, (20, 6, 6))
    matrices[:, 2] = 0  # absent from the targets, though predicted
    counts = np.stack([image_counts(matrix) for matrix in matrices])
    for matrix, score in zip(matrices, mean_iou(counts), strict=True):
        whole = ConfusionMatrix(6)
        whole.counts += torch.from_numpy(matrix)
        assert score == pytest.approx(whole.mean_iou(), abs=1e-15)
    assert np.isnan(mean_iou(np.zeros((3, 6))))


def test_an_interval_holds_the_score_and_shrinks_with_more_images() -> None:
    few, many = random_counts(0, images=20), random_counts(0, images=320)
    widths = []
    for counts in (few, many):
        interval = mean_iou_interval(counts)
        assert interval.contains(float(mean_iou(counts.sum(axis=0))))
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # as one over the square root of 16


def test_an_interval_agrees_with_a_slow_bootstrap() -> None:
    counts = random_counts(1)
    rng = np.random.default_rng(7)
    slow = [float(mean_iou(counts[rng.integers(0, 40, 40)].sum(axis=0))) for _ in range(4000)]
    interval = mean_iou_interval(counts)
    low, high = np.quantile(slow, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.0015)
    assert interval.high == pytest.approx(high, abs=0.0015)


def test_intervals_are_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = random_counts(2)
    interval = mean_iou_interval(counts)
    assert mean_iou_interval(counts) == interval
    monkeypatch.setattr(bootstrap, "SEED", 1)
    other = mean_iou_interval(counts)
    assert other != interval
    assert other.low == pytest.approx(interval.low, abs=0.02 * (interval.high - interval.low))


def test_a_model_against_itself_differs_by_nothing() -> None:
    counts = random_counts(3)
    interval = difference_interval(counts[None], counts[None])
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_pairing_sees_what_unpaired_intervals_cannot() -> None:
    worse = random_counts(4, skill=0.6)
    better = worse.copy()
    better[:, 0] += 2  # two more hits a class in every image
    better[:, 1:] += 2
    interval = difference_interval(worse[None], better[None])
    assert interval.low > 0
    alone = mean_iou_interval(worse)
    assert interval.high - interval.low < 0.2 * (alone.high - alone.low)


def test_runs_that_disagree_widen_the_interval() -> None:
    base = random_counts(5)
    up, down = random_counts(6, skill=0.75), random_counts(7, skill=0.65)
    steady = difference_interval(np.stack([base, base]), np.stack([up, up]))
    shaky = difference_interval(np.stack([base, base]), np.stack([up, down]))
    assert steady.low > 0
    assert shaky.low < 0 < shaky.high


def linear_counts(scores: np.ndarray) -> np.ndarray:
    """Returns the counts `(S, N, 3, 1)` of runs whose mean IoU is the mean of these scores of images `(S, N)`."""
    hits = np.rint(1e6 * scores).astype(np.int64)
    return np.stack([hits, np.full_like(hits, 10**6), hits], axis=2)[..., None]


def pair_of(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts of runs of a mean IoU of 0.5 and of others that differ from them so in each image `(S, N)`."""
    return linear_counts(np.full_like(differences, 0.5)), linear_counts(0.5 + differences)


def made_up(difference: float, error: float, image_error: float, seeds: int, images: int = 101) -> np.ndarray:
    """Returns differences `(S, N)` of exactly this mean, standard error over seeds and standard error over images."""
    rng = np.random.default_rng(5)
    parts = [rng.normal(size=(seeds, 1)), rng.normal(size=(1, images))]
    parts = [part - part.mean() for part in parts]
    spread = [error * seeds**0.5, image_error * images**0.5]
    return difference + sum(
        s * part / part.std(ddof=1) if part.size > 1 else part for s, part in zip(spread, parts, strict=True)
    )


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 9, 30, 101])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.95, 0.999])
def test_student_s_quantiles_are_exact(degrees: int, level: float) -> None:
    assert student_t(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-10)


@pytest.mark.parametrize(
    ("pairs", "least", "most"), [(2, 0.9496, 0.9768), *((pairs, 0.9483, 0.9601) for pairs in (3, 4, 5, 6, 10))]
)
def test_the_rule_that_joins_two_errors_covers_what_it_says(pairs: int, least: float, most: float) -> None:
    estimated = np.sqrt(stats.chi2.ppf((np.arange(500) + 0.5) / 500, pairs - 1) / (pairs - 1))  # of an error of 1
    t, z = student_t(0.95, pairs - 1), stats.norm.ppf(0.975)
    covered = []
    for image_error in (0, *np.geomspace(0.02, 50, 40)):
        widths = np.array([joined(t * one, z * image_error, pairs) for one in estimated])
        covered.append((2 * stats.norm.cdf(widths / np.hypot(1, image_error)) - 1).mean())
    assert least < min(covered) < max(covered) < most


# Standard errors of the mean difference: over seeds, over images that all seeds share, over images for each seed apart.
MIXTURES = [(1, 0, 0), (1, 0.2, 0.2), (1, 1, 0), (0, 1, 0), (0.1, 0.1, 1)]


def coverage(seeds: int, mixture: tuple[float, float, float], trials: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Returns how often the interval of `seeds` pairs of runs on 100 images holds the true difference."""
    monkeypatch.setattr(bootstrap, "DRAWS", 2 * bootstrap.DRAWS_AT_ONCE)
    rng = np.random.default_rng([seeds, *(int(10 * error) for error in mixture)])
    of_seeds, shared, own = (0.005 * error for error in mixture)
    hits = 0
    for trial in range(trials):
        monkeypatch.setattr(bootstrap, "SEED", trial)
        differences = (
            0.01
            + rng.normal(0, of_seeds * seeds**0.5, (seeds, 1))
            + rng.normal(0, shared * 100**0.5, (1, 100))
            + rng.normal(0, own * (100 * seeds) ** 0.5, (seeds, 100))
        )
        hits += difference_interval(*pair_of(differences)).contains(0.01)
    return hits / trials


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_covers_the_truth_as_often_as_it_says(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.93 < coverage(seeds, (1, 0.2, 0.5), 400, monkeypatch) < 0.97


@pytest.mark.nightly
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_interval_covers_the_truth_whatever_the_errors_are_made_of(
    seeds: int, mixture: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    covered = coverage(seeds, mixture, 6000, monkeypatch)
    print(f"{seeds} seeds, {mixture}: {covered:.4f}")
    assert 0.94 < covered < (0.98 if seeds == 2 else 0.96)


def test_what_images_do_to_each_seed_is_counted_once() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0, 0.05, (5, 101))
    interval = difference_interval(*pair_of(differences))
    found = differences.mean(axis=1)
    half = stats.t.ppf(0.975, 4) * found.std(ddof=1) / 5**0.5
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    alike = differences[:1].repeat(5, axis=0)
    assert difference_interval(*pair_of(alike)).low == pytest.approx(difference_interval(*pair_of(alike[:1])).low)


def published() -> list[dict[str, str]]:
    with PUBLISHED.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["row"] != "wide baseline"]


def published_errors() -> list[tuple[dict[str, str], float]]:
    """Returns each published row with its difference's standard error.

    It follows from the spreads of the row and of the reference; docs/results/ablation.md says how.
    """
    with PUBLISHED.open(newline="") as file:
        reference = next(float(row["spread"]) for row in csv.DictReader(file) if row["row"] == "wide baseline")
    return [(row, abs(float(row["spread"]) - reference) / 2**0.5) for row in published()]


@pytest.mark.parametrize("seeds_of_draws", [2, pytest.param(100, marks=pytest.mark.nightly)])
def test_the_published_intervals_are_exact_and_hang_on_no_draw(
    seeds_of_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "DRAWS", bootstrap.DRAWS // 10)  # even so
    for row, error in published_errors():
        counts = pair_of(made_up(float(row["against the wide baseline"]) / 100, error / 100, 0.003, seeds=2))
        ends = set()
        for seed in range(seeds_of_draws):
            monkeypatch.setattr(bootstrap, "SEED", seed)
            ends.add(difference_interval(*counts))
        assert len(ends) == 1
        (interval,) = ends
        assert [100 * interval.low, 100 * interval.high] == pytest.approx(
            [float(row[end]) for end in ("low", "high")], abs=0.006
        )


# Difference, standard errors over seeds and over images in points; what three seeds, or one pair, might show.
CASES = [(2.55, 0.195, 0.3, 3), (1.2, 0.2, 0.3, 3), (1.0, 0.2, 0.3, 3), (0.8, 0.1, 0.3, 5), (0.6, 0.1, 0.3, 5),
         (-0.32, 0, 0.2, 1), (0.4, 0, 0.214, 1), (1.4, 0, 0.153, 1)]  # fmt: skip


@pytest.mark.parametrize("seeds_of_draws", [3, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("case", CASES)
def test_a_verdict_hangs_on_no_draw(
    case: tuple[float, float, float, int], seeds_of_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    difference, error, image_error, seeds = case
    counts = pair_of(made_up(difference / 100, error / 100, image_error / 100, seeds))
    verdicts, lows = set(), []
    for seed in range(seeds_of_draws):
        monkeypatch.setattr(bootstrap, "SEED", seed)
        interval = difference_interval(*counts)
        verdicts.add(interval.contains(0.0))
        lows.append(interval.low)
    assert len(verdicts) == 1
    assert np.std(lows) < 0.01 * image_error / 100


def test_a_comparison_says_how_sure_it_is_and_where_the_models_differ() -> None:
    first = random_counts(8, images=6)
    second = first.copy()
    second[4] = random_counts(9, images=1, skill=0.2)[0]
    names = tuple("abcdef")
    comparison = compare(names, first, second)
    assert comparison.images[0].name == "e"
    assert comparison.second < comparison.first
    assert not comparison.distinguishable
    assert "not distinguishable: " in comparison.verdict()
    assert "other seeds" in comparison.verdict()
    assert comparison.verdict().startswith(f"{100 * (comparison.second - comparison.first):+.2f} points (")
    sure = compare(names, first, random_counts(10, images=6, skill=0.2))
    assert sure.distinguishable
    assert "not distinguishable" not in sure.verdict()
    assert "other seeds" in sure.verdict()
    assert "other seeds" in sure.to_json()["scope"]
    assert sure.to_json()["images"][0]["name"] in names


def test_where_nothing_was_counted_nothing_is_known() -> None:
    interval = mean_iou_interval(np.zeros((3, 3, 2), dtype=np.int64))
    assert np.isnan(interval.low)
    assert interval.contains(0.0)
    assert interval.to_json()["low"] is None


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_runs_on_images_without_a_label_have_no_interval(pairs: int) -> None:
    nothing = np.zeros((pairs, 3, 3, 2), dtype=np.int64)
    assert np.isnan(difference_interval(nothing, nothing).high)
    comparison = compare(("a", "b", "c"), nothing[0], nothing[0])
    assert "not distinguishable" in comparison.verdict()
    content = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert content["mean_iou"] == {"first": None, "second": None, "difference": None}


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_draws_of_images_without_a_label_are_left_out(pairs: int) -> None:
    counts = random_counts(11, images=3)[None].repeat(pairs, axis=0)
    counts[:, 1:] = 0
    better = counts.copy()
    better[:, 0, 0] += 1
    interval = difference_interval(counts, better)
    assert 0 < interval.low <= interval.high
