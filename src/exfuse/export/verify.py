"""Measuring how much an exported model differs from its network, on real images."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from exfuse.data.samples import Sample
from exfuse.errors import ExportError
from exfuse.inference.engines.base import Engine
from exfuse.metrics import ConfusionMatrix
from exfuse.models.storage.metadata import ModelMetadata


class Tolerances(NamedTuple):
    """Limits that an export must meet.

    Attributes:
        logit_error: Largest difference of a score, relative to the image's largest score.
        labels: Smallest fraction of equal labels, 0 to 1, excluding ties of the network.
        mean_iou: Smallest mean IoU on labelled images, relative to the network's.
    """

    logit_error: float
    labels: float
    mean_iou: float


# In fp32 an export computes the same sums in another order; other precisions are judged by their labels only.
TOLERANCES = {
    "fp32": Tolerances(1e-4, 0.9999, 0.999),
    "bf16": Tolerances(math.inf, 0.97, 0.99),
    "int8": Tolerances(math.inf, 0.95, 0.99),
}
# A pixel is a tie if the network's two best scores differ by less than this fraction of the image's largest.
TIE = 1e-4


@dataclass(frozen=True)
class ParityReport:
    """The differences between an exported model and its network.

    Attributes:
        images: Number of images compared.
        logit_error: As in `Tolerances`; the largest over all images.
        labels_equal: Fraction of pixels with equal labels, 0 to 1.
        labels_equal_outside_ties: The same, excluding the network's ties.
        mean_iou: Of the network and of the export on labelled pixels; None if there are none.
    """

    images: int
    logit_error: float
    labels_equal: float
    labels_equal_outside_ties: float
    mean_iou: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Returns the report as the content of a JSON file."""
        network, export = self.mean_iou or (None, None)
        return {
            "images": self.images,
            "logit_error": self.logit_error,
            "labels_equal": self.labels_equal,
            "labels_equal_outside_ties": self.labels_equal_outside_ties,
            "mean_iou_of_network": network,
            "mean_iou_of_export": export,
        }

    def check(self, precision: str) -> None:
        """Checks the report against the tolerances of a precision.

        Raises:
            ExportError: If a limit is not met; the message contains the limit and the measured value.
        """
        tolerances = TOLERANCES[precision]
        if not self.logit_error <= tolerances.logit_error:
            raise ExportError(
                f"{precision}: scores differ by {self.logit_error:.1e} of the largest score; at most "
                f"{tolerances.logit_error:.0e} is allowed"
            )
        if self.mean_iou is not None:
            network, export = self.mean_iou
            if not export >= tolerances.mean_iou * network:
                raise ExportError(
                    f"{precision}: mean IoU is {export:.4f}, the network's is {network:.4f}; at least "
                    f"{tolerances.mean_iou:.1%} of that is required"
                )
        if not self.labels_equal_outside_ties >= tolerances.labels:
            raise ExportError(
                f"{precision}: {self.labels_equal_outside_ties:.2%} of the labels equal the network's; at least "
                f"{tolerances.labels:.2%} must"
            )


def compare_engines(network: Engine, export: Engine, samples: Iterable[Sample], info: ModelMetadata) -> ParityReport:
    """Compares two engines image by image; the first image is computed in a batch of two, to check batches as well.

    Args:
        network: The reference; its scores are logits.
        export: The engine to check.
        samples: Images with masks; in the mask of an unlabelled image, every pixel is ignored.
        info: The model's metadata.

    Raises:
        ExportError: If there are no images, the shapes of the results differ, or a score is not finite.
    """
    matrices = [ConfusionMatrix(len(info.class_names), info.ignore_index) for _ in range(2)]
    images = pixels = equal = sure = sure_equal = 0
    worst = 0.0
    for sample in samples:
        batch = sample.image[None]
        if not images:  # the first image is batched with its mirror image
            batch = np.concatenate([batch, batch[:, :, ::-1]])
        expected, found = (engine.scores(batch) for engine in (network, export))
        labels = export.labels(batch)
        if expected.shape != found.shape or labels.shape != expected[:, 0].shape:
            raise ExportError(
                f"scores have shape {found.shape} and labels {labels.shape}, the network's scores {expected.shape}"
            )
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            raise ExportError("scores of the export or of the network itself are not finite")
        largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
        worst = max(worst, float(np.abs(found - expected).max()) / largest)
        truth = expected.argmax(axis=1)
        best = np.partition(expected, -2, axis=1)[:, -2:]
        apart = best[:, 1] - best[:, 0] > TIE * largest
        same = labels == truth
        images, pixels, equal = images + 1, pixels + same.size, equal + int(same.sum())
        sure, sure_equal = sure + int(apart.sum()), sure_equal + int((same & apart).sum())
        matrices[0].update(truth[0], sample.mask)
        matrices[1].update(labels[0], sample.mask)
    if not images:
        raise ExportError("there are no images to check the export with")
    ious = tuple(matrix.mean_iou() for matrix in matrices)
    scored = (ious[0], ious[1]) if matrices[0].counts.any() else None
    return ParityReport(images, worst, equal / pixels, sure_equal / max(sure, 1), scored)
