"""Our counts and scores against independent ones: NumPy, torchmetrics, and the rules of VOC and Cityscapes."""

import itertools

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from exfuse.metrics import ConfusionMatrix

IGNORE = 255
CASES = 1000


def random_case(seed: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns K, predicted labels and targets; some classes may be absent from either, some pixels ignored."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 12))
    shape = tuple(rng.integers(1, 20, 2))
    labels, target = rng.integers(0, classes, (2, *shape))
    target = np.where(rng.random(shape) < rng.uniform(0, 0.3), IGNORE, target)
    return classes, labels.astype(np.uint8), target.astype(np.uint8)


def count_slowly(classes: int, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    counts = np.zeros((classes, classes), dtype=np.int64)
    for true, predicted in itertools.product(range(classes), repeat=2):
        counts[true, predicted] = ((target == true) & (labels == predicted)).sum()
    return counts


def ours(classes: int, labels: np.ndarray, target: np.ndarray) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes, IGNORE)
    matrix.update(labels, target)
    return matrix


def voc_rule(counts: np.ndarray) -> float:
    """The VOC devkit's mean: every class counts, and one that nobody names makes it undefined."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())))


def cityscapes_rule(counts: np.ndarray) -> float:
    """Cityscapes' mean: over the classes that are in the targets or in the predictions."""
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float(np.mean(counts.diagonal()[union > 0] / union[union > 0]))


def test_a_thousand_random_cases_are_counted_as_others_count_them() -> None:
    for seed in range(CASES):
        classes, labels, target = random_case(seed)
        counts = ours(classes, labels, target).counts
        np.testing.assert_array_equal(counts.numpy(), count_slowly(classes, labels, target))
        theirs = MulticlassConfusionMatrix(classes, ignore_index=IGNORE, validate_args=False)
        known = torch.from_numpy(labels).long(), torch.from_numpy(target).long()
        np.testing.assert_array_equal(counts.numpy(), theirs(*known).numpy())


def test_where_every_class_occurs_all_definitions_agree() -> None:
    agreed = 0
    for seed in range(200):
        classes, labels, target = random_case(seed)
        matrix = ours(classes, labels, target)
        if not matrix.present().all():
            continue
        agreed += 1
        counts = count_slowly(classes, labels, target)
        jaccard = MulticlassJaccardIndex(classes, ignore_index=IGNORE, validate_args=False)
        theirs = float(jaccard(torch.from_numpy(labels).long(), torch.from_numpy(target).long()))
        assert matrix.mean_iou() == pytest.approx(voc_rule(counts), abs=1e-12)
        assert matrix.mean_iou() == pytest.approx(cityscapes_rule(counts), abs=1e-12)
        assert matrix.mean_iou() == pytest.approx(theirs, abs=1e-6)
    assert agreed > 100


def test_definitions_differ_where_a_class_is_predicted_but_never_true() -> None:
    target = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]]])
    labels = np.array([[[0, 0, 1, 2]], [[0, 0, 0, 0]]])
    counts = count_slowly(4, labels, target)
    assert ours(4, labels, target).mean_iou() == pytest.approx((5 / 6 + 1 / 3) / 2)  # classes 0 and 1, which occur
    assert cityscapes_rule(counts) == pytest.approx((5 / 6 + 1 / 3 + 0) / 3)  # and class 2, wrongly predicted
    assert np.isnan(voc_rule(counts))  # class 3 is nowhere
    pair = torch.from_numpy(labels), torch.from_numpy(target)
    jaccard = MulticlassJaccardIndex(4, ignore_index=IGNORE)(*pair)
    assert float(jaccard) == pytest.approx((5 / 6 + 1 / 3 + 0) / 3)
    of_pairs = MeanIoU(4, input_format="index")(*pair)  # of an image and a class that is in it
    assert float(of_pairs) == pytest.approx((1 + 1 / 2 + 0 + 3 / 4 + 0) / 5)


def test_predictions_on_ignored_pixels_count_nowhere() -> None:
    target = np.array([[0, 1, IGNORE, IGNORE]])
    labels = np.array([[0, 1, 0, 1]])
    assert ours(2, labels, target).mean_iou() == 1.0
