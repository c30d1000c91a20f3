"""Segmentation metrics computed from pixel counts over a whole data set."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64Array = npt.NDArray[np.float64]


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over all pixels seen, as exact 64-bit integers.

    All metrics are computed from these counts, so they describe the whole set and are not means over images. Pixels
    whose target is `ignore_index` are excluded. Classes that never occur in the targets have no score: their IoU and
    accuracy are nan, and means are taken over the classes that occur.

    Args:
        num_classes: K.
        ignore_index: Target label to exclude.

    Attributes:
        counts: int64 `(K, K)`; rows are true classes, columns predicted ones.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, labels: Tensor | npt.NDArray[np.integer], target: Tensor | npt.NDArray[np.integer]) -> None:
        """Adds the pixels of one or more images.

        Args:
            labels: Predicted classes 0 to K - 1, of any shape.
            target: True classes, of the same shape; 0 to K - 1 or `ignore_index`.

        Raises:
            ValueError: If the shapes differ, a value is not a class, or a type is not an integer type.
        """
        predicted, true = _as_tensor(labels), _as_tensor(target)
        if predicted.shape != true.shape:
            raise ValueError(f"labels have shape {tuple(predicted.shape)}, the target has {tuple(true.shape)}")
        counted = true.long() != self.ignore_index  # as uint8, an index beyond 0 to 255 would wrap around
        predicted, true = predicted[counted].long(), true[counted].long()
        for name, values in (("label", predicted), ("target", true)):
            if values.numel() and (values.min() < 0 or values.max() >= self.num_classes):
                wrong = values[(values < 0) | (values >= self.num_classes)][0].item()
                raise ValueError(f"{name} {wrong} is not one of the {self.num_classes} classes")
        pairs = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.counts += pairs.view(self.num_classes, self.num_classes).to(self.counts.device)

    @property
    def _true_pixels(self) -> Float64Array:
        return self.counts.sum(dim=1).cpu().numpy().astype(np.float64)

    @property
    def _correct_pixels(self) -> Float64Array:
        return self.counts.diagonal().cpu().numpy().astype(np.float64)

    def iou(self) -> Float64Array:
        """Returns each class's intersection over union, `(K,)`, 0 to 1; nan for absent classes."""
        predicted_pixels = self.counts.sum(dim=0).cpu().numpy().astype(np.float64)
        union = self._true_pixels + predicted_pixels - self._correct_pixels
        return ratio(self._correct_pixels, union, self.present())

    def accuracy(self) -> Float64Array:
        """Returns each class's recall, the fraction of its pixels that are found, `(K,)`; nan for absent classes."""
        return ratio(self._correct_pixels, self._true_pixels, self.present())

    def present(self) -> npt.NDArray[np.bool_]:
        """Returns which classes occur in the targets, `(K,)`."""
        return self._true_pixels > 0

    def mean_iou(self) -> float:
        """Returns the mean IoU over the classes that occur; nan if no pixel was counted."""
        return mean_of_known(self.iou())

    def mean_accuracy(self) -> float:
        """Returns the mean of the class accuracies over the classes that occur."""
        return mean_of_known(self.accuracy())

    def pixel_accuracy(self) -> float:
        """Returns the fraction of all counted pixels predicted correctly; nan if no pixel was counted."""
        total = self._true_pixels.sum()
        return float(self._correct_pixels.sum() / total) if total else float("nan")

    def frequency_weighted_iou(self) -> float:
        """Returns the mean IoU weighted by each class's true pixels (Long et al., CVPR 2015, sec. 5)."""
        total = self._true_pixels.sum()
        return float(np.nansum(self.iou() * self._true_pixels) / total) if total else float("nan")


def _as_tensor(values: Tensor | npt.NDArray[np.integer]) -> Tensor:
    # A copy, because torch accepts neither read-only arrays nor negative strides.
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"labels must be integers, got {tensor.dtype}")
    return tensor


def ratio(numerator: Float64Array, denominator: Float64Array, known: npt.NDArray[np.bool_]) -> Float64Array:
    """Returns the quotients where `known` is True and nan elsewhere; all arrays have the same shape."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=known)
    return result


def mean_of_known(values: Float64Array) -> float:
    """Returns the mean of the values that are not nan; nan if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
