"""What all engines have in common. Knows no torch."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from exfuse.data.samples import UInt8Array
from exfuse.errors import CheckpointError
from exfuse.inference.tta import TestTimeAugmentation

Precision = Literal["fp32", "bf16"]
# The names of a `DeployableModel`'s input and outputs in a converted model.
IMAGES, LABELS, LOGITS = "images", "labels", "logits"
Float32Array = npt.NDArray[np.float32]


class Engine(Protocol):
    """Computes a network, with the preparation of its input and the choice of labels.

    Attributes:
        name: As in `Predictor.from_pretrained`.
        precision: Of the network, "fp32", "bf16" or "int8"; the scores are float32 in any case.
        device: Where it computes, in words.
        augmentation: What is averaged; the scores are then probabilities, and else logits.
    """

    name: str
    precision: str
    device: str
    augmentation: TestTimeAugmentation

    def labels(self, images: UInt8Array) -> UInt8Array:
        """Returns the class of largest score, the first of equals: RGB `(N, H, W, 3)` to `(N, H, W)`.

        The faster engines choose labels without ever holding the scores of all pixels, so that only `scores` says if
        they are not finite; weights that are not, and files that were changed, are refused when a model is opened.
        """

    def scores(self, images: UInt8Array) -> Float32Array:
        """Returns each class's score: RGB `(N, H, W, 3)` to `(N, K, H, W)`.

        Raises:
            CheckpointError: If one is not finite.
        """


def checked_labels(labels: UInt8Array, images: UInt8Array, num_classes: int, source: object) -> UInt8Array:
    """Returns the labels that an exported file gave, which may be any file's, as they are.

    Raises:
        CheckpointError: If they are not one class for each pixel of the images.
    """
    if labels.dtype != np.uint8 or labels.shape != images.shape[:3] or labels.max() >= num_classes:
        raise CheckpointError(f"{source}: does not give one of {num_classes} classes for each pixel")
    return labels


def checked_scores(scores: Float32Array, images: UInt8Array, num_classes: int, source: object) -> Float32Array:
    """Returns the scores that an exported file gave as they are.

    Raises:
        CheckpointError: If they are not one for each class and pixel, or one is not finite.
    """
    count, *size = images.shape[:3]
    if scores.dtype != np.float32 or scores.shape != (count, num_classes, *size):
        raise CheckpointError(f"{source}: does not give a score of each of {num_classes} classes for each pixel")
    return finite(scores)


def finite(scores: Float32Array) -> Float32Array:
    """Returns scores as they are.

    Raises:
        CheckpointError: If one is not finite.
    """
    check_finite(bool(np.isfinite(scores).all()))
    return scores


def check_finite(is_finite: bool) -> None:
    """Refuses what is not.

    Raises:
        CheckpointError: As above.
    """
    if not is_finite:
        raise CheckpointError("the model's scores of an image are not finite: its weights are damaged or diverged")
