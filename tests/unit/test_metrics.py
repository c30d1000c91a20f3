import numpy as np
import pytest
import torch
from PIL import Image

from exfuse.metrics import ConfusionMatrix


def counted_by_a_loop(labels: np.ndarray, target: np.ndarray, num_classes: int, ignore_index: int) -> list[list[int]]:
    counts = [[0] * num_classes for _ in range(num_classes)]
    for predicted, true in zip(labels.ravel().tolist(), target.ravel().tolist(), strict=True):
        if true != ignore_index:
            counts[true][predicted] += 1
    return counts


def four_scores(matrix: ConfusionMatrix) -> list[float]:
    return [matrix.mean_iou(), matrix.mean_accuracy(), matrix.pixel_accuracy(), matrix.frequency_weighted_iou()]


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Returns labels, target, number of classes and ignored label; often with classes that are absent."""
    num_classes = int(rng.integers(2, 7))
    ignore_index = int(rng.choice([255, num_classes]))
    shape = tuple(rng.integers(1, 6, rng.integers(1, 4)))
    present = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)]
    target = rng.choice(np.append(present, ignore_index), shape).astype(np.uint8)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    return labels, target, num_classes, ignore_index


def test_counts_are_those_of_a_plain_loop_over_the_pixels():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        labels, target, num_classes, ignore_index = random_case(rng)
        matrix = ConfusionMatrix(num_classes, ignore_index)
        matrix.update(labels, target)
        assert matrix.counts.dtype == torch.int64
        assert matrix.counts.tolist() == counted_by_a_loop(labels, target, num_classes, ignore_index)


def test_scores_are_those_of_sets_of_pixels():
    rng = np.random.default_rng(1)
    absent_seen = nothing_seen = 0
    for _ in range(1000):
        labels, target, num_classes, ignore_index = random_case(rng)
        matrix = ConfusionMatrix(num_classes, ignore_index)
        matrix.update(labels, target)

        counted = target != ignore_index
        ious, recalls, shares = [], [], []
        for label in range(num_classes):
            true, predicted = (target == label) & counted, (labels == label) & counted
            present = true.any()
            absent_seen += not present
            ious.append((true & predicted).sum() / (true | predicted).sum() if present else np.nan)
            recalls.append((true & predicted).sum() / true.sum() if present else np.nan)
            shares.append(true.sum() / counted.sum() if counted.any() else np.nan)
            assert matrix.present()[label] == present
        np.testing.assert_allclose(matrix.iou(), ious, rtol=1e-15)
        np.testing.assert_allclose(matrix.accuracy(), recalls, rtol=1e-15)

        known = [label for label in range(num_classes) if (target == label).any()]
        nothing_seen += not known
        expected = [np.nan] * 4
        if known:
            mean_iou = sum(ious[label] for label in known) / len(known)
            mean_accuracy = sum(recalls[label] for label in known) / len(known)
            weighted_iou = sum(ious[label] * shares[label] for label in known)
            expected = [mean_iou, mean_accuracy, (labels == target)[counted].mean(), weighted_iou]
        np.testing.assert_allclose(four_scores(matrix), expected, rtol=1e-14)
    assert absent_seen > 100
    assert nothing_seen > 10


def test_the_five_scores_of_an_example_worked_out_by_hand():
    # True class by predicted class: [3 1 0], [1 4 0], [0 1 0]; two more pixels are ignored.
    target = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 255, 255])
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 2, 0])
    matrix = ConfusionMatrix(3)
    matrix.update(labels, target)
    assert matrix.counts.tolist() == [[3, 1, 0], [1, 4, 0], [0, 1, 0]]
    np.testing.assert_allclose(matrix.iou(), [3 / 5, 4 / 7, 0], rtol=1e-15)
    np.testing.assert_allclose(matrix.accuracy(), [3 / 4, 4 / 5, 0], rtol=1e-15)
    assert matrix.mean_iou() == pytest.approx(41 / 105, rel=1e-14)
    assert matrix.mean_accuracy() == pytest.approx(31 / 60, rel=1e-14)
    assert matrix.pixel_accuracy() == pytest.approx(7 / 10, rel=1e-14)
    assert matrix.frequency_weighted_iou() == pytest.approx(92 / 175, rel=1e-14)


def test_a_perfect_prediction_scores_one():
    target = np.random.default_rng(0).integers(0, 4, (20, 30))
    target[:2] = 255
    matrix = ConfusionMatrix(5)
    matrix.update(np.where(target == 255, 4, target), target)
    np.testing.assert_array_equal(matrix.iou(), [1, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(matrix.accuracy(), [1, 1, 1, 1, np.nan])
    assert four_scores(matrix) == [1, 1, 1, 1]


def test_a_prediction_that_is_always_wrong_scores_zero():
    target = np.random.default_rng(0).integers(0, 4, (20, 30))
    matrix = ConfusionMatrix(4)
    matrix.update((target + 1) % 4, target)
    np.testing.assert_array_equal(matrix.iou(), np.zeros(4))
    np.testing.assert_array_equal(matrix.accuracy(), np.zeros(4))
    assert four_scores(matrix) == [0, 0, 0, 0]


def test_a_class_that_is_only_predicted_lowers_others_and_is_not_in_the_mean():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 2, 1, 1]), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(matrix.iou(), [1 / 2, 1, np.nan])
    assert matrix.present().tolist() == [True, True, False]
    assert matrix.mean_iou() == 3 / 4


def test_nothing_counted_is_no_score():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 1]), np.array([255, 255]))
    assert matrix.counts.sum() == 0
    assert np.isnan(matrix.iou()).all()
    assert np.isnan(matrix.accuracy()).all()
    assert np.isnan(four_scores(matrix)).all()


def test_images_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    labels, target = rng.integers(0, 4, (5, 6, 7)), rng.choice([0, 1, 2, 3, 255], (5, 6, 7))
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(labels, target)
    for one, other in zip(labels, target, strict=True):
        parts.update(one, other)
    assert whole.counts.sum() > 0
    assert torch.equal(whole.counts, parts.counts)


def test_counts_stay_exact_where_floats_would_not():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**53
    matrix.update(np.zeros(1, dtype=np.uint8), np.zeros(1, dtype=np.uint8))
    assert matrix.counts[0, 0] == 2**53 + 1


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "int64"])
def test_labels_of_every_integer_type_count_the_same(kind: str):
    labels, target = np.array([[0, 19], [20, 7]]), np.array([[0, 20], [20, 255]])
    expected = counted_by_a_loop(labels, target, 21, 255)
    matrix = ConfusionMatrix(21)
    matrix.update(labels.astype(kind), target.astype(kind))
    assert matrix.counts.tolist() == expected
    matrix = ConfusionMatrix(21)
    matrix.update(torch.from_numpy(labels.astype(kind)), torch.from_numpy(target))
    assert matrix.counts.tolist() == expected


@pytest.mark.usefixtures("every_torch_warning")
def test_a_picture_that_cannot_be_written_to_is_counted():
    target = np.array([[0, 1, 0], [1, 1, 255]], dtype=np.uint8)
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([[0, 1, 1], [1, 0, 0]]), np.asarray(Image.fromarray(target)))
    assert matrix.counts.tolist() == [[1, 1], [1, 2]]


def test_mirrored_and_turned_views_of_arrays_are_counted():
    labels, target = np.array([[0, 1, 1], [1, 0, 0]]), np.array([[0, 1, 0], [1, 1, 255]])
    matrix = ConfusionMatrix(2)
    matrix.update(labels.T, target.T)
    assert matrix.counts.tolist() == [[1, 1], [1, 2]]
    matrix.update(labels[:, ::-1], target[:, ::-1])
    assert matrix.counts.tolist() == [[2, 2], [2, 4]]


def test_what_is_predicted_for_ignored_pixels_may_be_anything():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1, 200, 2]), np.array([1, 255, 255]))
    assert matrix.counts.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        ([0, 1, 0], [0, 1], r"\(3,\).*\(2,\)"),
        ([[0, 1]], [[0], [1]], r"\(1, 2\).*\(2, 1\)"),
        ([0, 3, 4], [0, 1, 1], r"label 3 .*\b3 classes"),
        ([0, -1, 0], [0, 1, 1], r"label -1 .*\b3 classes"),
        ([0, 1, 2], [0, 1, 3], r"target 3 .*\b3 classes"),
        ([0, 1, 2], [0, 1, 254], r"target 254 .*\b3 classes"),
        ([0, 1, 2], [0, 1, -1], r"target -1 .*\b3 classes"),
        ([0.0, 1.9, 2.0], [0, 1, 2], r"torch\.float64"),
        ([0, 1, 2], [0.0, 1.0, 2.0], r"torch\.float64"),
    ],
)
def test_what_is_no_class_is_refused_and_not_counted(labels: list, target: list, message: str):
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([1]), np.array([2]))
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(labels), np.array(target))
    assert matrix.counts.sum() == 1
    assert matrix.counts[2, 1] == 1


@pytest.mark.parametrize("ignored", [-1, 256, 257])
def test_an_ignore_index_that_8_bits_cannot_hold_is_none_of_their_values(ignored: int):
    matrix = ConfusionMatrix(3, ignore_index=ignored)
    labels = np.array([0, 1, 1], dtype=np.uint8)
    matrix.update(labels, np.array([0, 1, 2], dtype=np.uint8))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match=r"target 255 .*\b3 classes"):
        matrix.update(labels, np.array([0, 1, 255], dtype=np.uint8))
