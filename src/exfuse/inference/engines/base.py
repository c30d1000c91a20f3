"""What all engines have in common. Knows no torch."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from exfuse.data.samples import UInt8Array
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
        """Returns the class of largest score, the first of equals: RGB `(N, H, W, 3)` to `(N, H, W)`."""

    def scores(self, images: UInt8Array) -> Float32Array:
        """Returns each class's score: RGB `(N, H, W, 3)` to `(N, K, H, W)`."""
