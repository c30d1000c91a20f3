"""Further metrics, each counted over a whole split: boundaries, calibration, object size.

A metric keeps its counts in one tensor, so that the counts of several processes can be summed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exfuse.data.samples import UInt8Array
from exfuse.metrics import ConfusionMatrix, mean_of_known, ratio

TRIMAP_WIDTHS = (1, 2, 4, 8, 16)  # pixels
CALIBRATION_BINS = 15
# Areas in pixels at which objects become medium and large, as in COCO.
SIZE_LIMITS = (32**2, 96**2)
SIZE_NAMES = ("small", "medium", "large")

BoolArray = npt.NDArray[np.bool_]


class ScoredImage(NamedTuple):
    """The prediction for one image, and its ground truth.

    Attributes:
        confidence: Probability of each pixel's label, float32 `(H, W)`, 0 to 1.
        labels: Predicted classes, uint8 `(H, W)`.
        target: True classes, uint8 `(H, W)`.
    """

    confidence: npt.NDArray[np.float32]
    labels: UInt8Array
    target: UInt8Array


class Metric(Protocol):
    """A metric that is counted in addition to the confusion matrix."""

    counts: Tensor

    def update(self, image: ScoredImage) -> None:
        """Adds an image."""

    def result(self) -> dict[str, Any]:
        """Returns the metric's values as JSON; null where nothing was counted."""


class BoundaryIoU:
    """IoU of the classes' boundary regions (Cheng et al., "Boundary IoU", CVPR 2021).

    The boundary region of a class is the part within a distance of 2 % of the image's diagonal from its contour; the
    image border counts as contour. Ignored pixels belong to no class, in the prediction as in the ground truth, so both
    regions have a contour there.

    Args:
        num_classes: Number of classes K.
        ignore_index: Target label to ignore.

    Attributes:
        counts: int64 `(K, 3)`: pixels in both boundary regions, in the true one, in the predicted one.
    """

    distance_share = 0.02

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, 3, dtype=torch.int64)

    def update(self, image: ScoredImage) -> None:
        """Adds an image."""
        height, width = image.target.shape
        distance = max(1, round(self.distance_share * float(np.hypot(height, width))))
        labels = np.where(image.target == self.ignore_index, self.ignore_index, image.labels)
        for label in np.union1d(np.unique(image.target), np.unique(labels)).tolist():
            if label == self.ignore_index:
                continue
            true = boundary_region(image.target == label, distance)
            predicted = boundary_region(labels == label, distance)
            self.counts[label] += torch.tensor([(true & predicted).sum(), true.sum(), predicted.sum()])

    def result(self) -> dict[str, Any]:
        """Returns the mean boundary IoU and that of each class, 0 to 1."""
        both, true, predicted = self.counts.numpy().astype(np.float64).T
        scores = ratio(both, true + predicted - both, true > 0)
        return {"mean": _known(mean_of_known(scores)), "classes": [_known(score) for score in scores]}


def boundary_region(region: BoolArray, distance: int) -> BoolArray:
    """Returns the pixels of a region within a distance of a pixel outside the region or the image.

    Args:
        region: `(H, W)`.
        distance: Chebyshev distance in pixels: the larger of the horizontal and the vertical distance.
    """
    window = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    inner = cv2.erode(region.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    outside: BoolArray = np.asarray(inner) == 0
    return region & outside


class TrimapIoU:
    """Mean IoU over the pixels near a true boundary, for bands of several widths (Kohli et al., IJCV 2009).

    A pixel is in the band of width w if a pixel with another target label (or the ignored one) is within w pixels.

    Attributes:
        counts: int64 `(bands, K, K)`, one confusion matrix per width.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(len(TRIMAP_WIDTHS), num_classes, num_classes, dtype=torch.int64)

    def update(self, image: ScoredImage) -> None:
        """Adds an image."""
        for counts, width in zip(self.counts, TRIMAP_WIDTHS, strict=True):
            window = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
            # OpenCV pads dilation and erosion with values that do not affect the result.
            band = cv2.dilate(image.target, window) != cv2.erode(image.target, window)
            matrix = ConfusionMatrix(self.num_classes, self.ignore_index)
            matrix.update(image.labels[band], image.target[band])
            counts += matrix.counts

    def result(self) -> dict[str, Any]:
        """Returns the mean IoU for each width, 0 to 1."""
        scores = {}
        for counts, width in zip(self.counts, TRIMAP_WIDTHS, strict=True):
            matrix = ConfusionMatrix(self.num_classes, self.ignore_index)
            matrix.counts = counts
            scores[str(width)] = _known(matrix.mean_iou())
        return {"mean_iou_by_width": scores}


class Calibration:
    """Expected calibration error over pixels, with confidence bins of equal width (Guo et al., ICML 2017, section 2).

    Attributes:
        counts: float64 `(bins, 3)`: pixels, correct pixels, sum of the confidences of all pixels.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.counts = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64)

    def update(self, image: ScoredImage) -> None:
        """Adds an image."""
        counted = image.target != self.ignore_index
        confidence = image.confidence[counted].astype(np.float64)
        right = (image.labels == image.target)[counted]
        # A confidence of exactly 1 belongs to the last bin.
        bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        sums = [np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, right, confidence)]
        self.counts += torch.from_numpy(np.stack(sums, axis=1).astype(np.float64))

    def result(self) -> dict[str, Any]:
        """Returns the error, 0 to 1, and the fraction of pixels, accuracy and mean confidence of each bin."""
        pixels, right, confidence = self.counts.numpy().T
        total = pixels.sum()
        error = np.abs(right - confidence).sum() / total if total else float("nan")
        bins = [
            {"fraction": float(count / total), "accuracy": float(hits / count), "confidence": float(trust / count)}
            for count, hits, trust in self.counts.tolist()
            if count
        ]
        return {"expected_calibration_error": _known(error), "bins": bins}


class ObjectSizeIoU:
    """Mean IoU for small, medium and large objects, with COCO's limits of 32 x 32 and 96 x 96 pixels.

    An object is a connected region of one class. Hits and misses count for the size of the true object, false positives
    for the size of the predicted object that contains them.

    Attributes:
        counts: int64 `(3, K, 3)`: hits, misses and false positives by size and class.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(len(SIZE_NAMES), num_classes, 3, dtype=torch.int64)

    def update(self, image: ScoredImage) -> None:
        """Adds an image."""
        labels = np.where(image.target == self.ignore_index, self.ignore_index, image.labels)
        for label in np.union1d(np.unique(image.target), np.unique(labels)).tolist():
            if label == self.ignore_index:
                continue
            true, predicted = image.target == label, labels == label
            size_of_true, size_of_predicted = size_classes(true), size_classes(predicted)
            for size in range(len(SIZE_NAMES)):
                in_size = true & (size_of_true == size)
                claimed = predicted & (size_of_predicted == size) & ~true
                hits = int((in_size & predicted).sum())
                self.counts[size, label] += torch.tensor([hits, int(in_size.sum()) - hits, int(claimed.sum())])

    def result(self) -> dict[str, Any]:
        """Returns the mean IoU for each size, 0 to 1, over the classes with objects of that size."""
        scores = {}
        for name, counts in zip(SIZE_NAMES, self.counts.numpy().astype(np.float64), strict=True):
            hits, misses, claims = counts.T
            scores[name] = _known(mean_of_known(ratio(hits, hits + misses + claims, hits + misses > 0)))
        return {"mean_iou_by_size": scores, "limits": list(SIZE_LIMITS)}


def size_classes(region: BoolArray) -> npt.NDArray[np.int64]:
    """Returns, for each pixel of a region, the size of its connected component: 0 small, 1 medium, 2 large.

    Args:
        region: `(H, W)`; components are 8-connected.
    """
    _, components, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    sizes: npt.NDArray[np.int64] = np.digitize(statistics[:, cv2.CC_STAT_AREA], SIZE_LIMITS)
    pixel_sizes: npt.NDArray[np.int64] = sizes[components]
    return pixel_sizes


METRICS: dict[str, Callable[[int, int], Metric]] = {
    "boundary_iou": BoundaryIoU,
    "trimap_iou": TrimapIoU,
    "calibration": Calibration,
    "object_size": ObjectSizeIoU,
}


def make_metrics(names: Sequence[str], num_classes: int, ignore_index: int) -> dict[str, Metric]:
    """Returns new metrics by name; the names are keys of `METRICS`."""
    return {name: METRICS[name](num_classes, ignore_index) for name in names}


def _known(value: float) -> float | None:
    return None if value != value else float(value)
