"""Intervals over images and runs."""

import numpy as np
import pytest
import torch

from exfuse.evaluation import bootstrap
from exfuse.evaluation.bootstrap import difference_interval, image_counts, mean_iou, mean_iou_interval
from exfuse.evaluation.compare import compare
from exfuse.metrics import ConfusionMatrix


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


def test_intervals_are_repeatable() -> None:
    counts = random_counts(2)
    assert mean_iou_interval(counts) == mean_iou_interval(counts)
    assert mean_iou_interval(counts) != mean_iou_interval(counts, seed=1)


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


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_rows_that_differ_by_their_seeds_alone_are_seldom_told_apart(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "DRAWS", bootstrap.DRAWS_AT_ONCE)
    rng = np.random.default_rng(seeds)

    def runs() -> np.ndarray:  # every run has a skill of its own, the same in each of eight images
        hits = np.rint(10_000 * rng.normal(0.7, 0.02, (seeds, 1, 1, 1))).astype(np.int64)
        return np.concatenate([hits, np.full_like(hits, 10_000), np.full_like(hits, 10_000)], axis=2).repeat(8, axis=1)

    trials = 400
    apart = sum(not difference_interval(runs(), runs(), seed=trial).contains(0.0) for trial in range(trials))
    assert apart / trials < 0.09  # one in twenty, were the draws endless


def test_a_comparison_says_how_sure_it_is_and_where_the_models_differ() -> None:
    first = random_counts(8, images=6)
    second = first.copy()
    second[4] = random_counts(9, images=1, skill=0.2)[0]
    names = tuple("abcdef")
    comparison = compare(names, first, second)
    assert comparison.images[0].name == "e"
    assert comparison.second < comparison.first
    assert not comparison.distinguishable
    assert comparison.verdict().endswith("not distinguishable")
    assert comparison.verdict().startswith(f"{100 * (comparison.second - comparison.first):+.2f} points (")
    sure = compare(names, first, random_counts(10, images=6, skill=0.2))
    assert sure.distinguishable
    assert "not distinguishable" not in sure.verdict()
    assert sure.to_json()["images"][0]["name"] in names


def test_where_nothing_was_counted_nothing_is_known() -> None:
    interval = mean_iou_interval(np.zeros((3, 3, 2), dtype=np.int64))
    assert np.isnan(interval.low)
    assert interval.contains(0.0)
    assert interval.to_json()["low"] is None
