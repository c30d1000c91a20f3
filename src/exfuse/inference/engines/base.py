"""What all engines have in common. Knows no torch."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from exfuse.data.samples import UInt8Array
from exfuse.errors import CheckpointError
from exfuse.inference.augmentation import TestTimeAugmentation

Precision = Literal["fp32", "bf16"]
# The names of a `LabelGraph`'s input and outputs in a converted model.
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
