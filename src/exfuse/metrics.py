"""Segmentation metrics from counts over a whole data set."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64Array = npt.NDArray[np.float64]


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over all pixels seen, as exact 64-bit integers.

    All metrics follow from these counts, so they are those of the whole set and not a mean over images. Pixels whose
    target is `ignore_index` are left out. Classes that never occur in the targets have no score: their IoU and
    accuracy are nan, and the means are taken over the classes that do occur.

    Args:
        num_classes: K.
        ignore_index: Target label that is left out.

    Attributes:
        counts: int64 `(K, K)`; the row is the true class, the column the predicted one.
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
            ValueError: If the shapes differ, or a value is no class or not of an integer type.
        """
        predicted, true = _as_tensor(labels), _as_tensor(target)
        if predicted.shape != true.shape:
            raise ValueError(f"labels have shape {tuple(predicted.shape)}, the target {tuple(true.shape)}")
        counted = true.long() != self.ignore_index  # 8 bits would wrap an index that they cannot hold
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
        """Returns intersection over union of each class, `(K,)`, 0 to 1; nan where the class is absent."""
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
        """Returns the mean IoU over the classes that occur; nan before any pixel was counted."""
        return mean_of_known(self.iou())

    def mean_accuracy(self) -> float:
        """Returns the mean of the class accuracies over the classes that occur."""
        return mean_of_known(self.accuracy())

    def pixel_accuracy(self) -> float:
        """Returns the fraction of all counted pixels whose label is right."""
        total = self._true_pixels.sum()
        return float(self._correct_pixels.sum() / total) if total else float("nan")

    def frequency_weighted_iou(self) -> float:
        """Returns the mean IoU weighted by each class's true pixels (Long et al., CVPR 2015, sec. 5)."""
        total = self._true_pixels.sum()
        return float(np.nansum(self.iou() * self._true_pixels) / total) if total else float("nan")


def _as_tensor(values: Tensor | npt.NDArray[np.integer]) -> Tensor:
    # A copy, since torch takes neither read-only nor mirrored arrays as they are.
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"labels are whole numbers, not {tensor.dtype}")
    return tensor


def ratio(numerator: Float64Array, denominator: Float64Array, known: npt.NDArray[np.bool_]) -> Float64Array:
    """Returns the quotients where they are known and nan elsewhere; all of one shape."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=known)
    return result


def mean_of_known(values: Float64Array) -> float:
    """Returns the mean of the values that are not nan; nan if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
