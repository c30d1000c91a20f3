"""The interface of all engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from exfuse.data.samples import UInt8Array
from exfuse.errors import CheckpointError, ConfigError
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.packages import require

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


LoadEngine = Callable[[Path, Precision | None, TestTimeAugmentation], tuple[Engine, ModelMetadata]]


class EngineSpec(NamedTuple):
    """An engine as it is registered: how it is opened and what it can do, known without importing its library.

    Attributes:
        name: As in `Predictor.from_pretrained`.
        load: Opens a file that ends in `suffix` or, without a suffix, a model folder, given the path, the precision
            (None for the engine's own default) and the test-time augmentation.
        suffix: Of the exported files that it computes; None if it computes model folders themselves.
        packages: The packages that it needs.
        extra: The extra of exfuse that installs them.
        precisions: Those that it can compute in.
        has_tta: Whether it averages scales and flips.
    """

    name: str
    load: LoadEngine
    suffix: str | None = None
    packages: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    has_tta: bool = False

    def check(self, precision: Precision | None, augmentation: TestTimeAugmentation) -> None:
        """Checks that the engine is installed and can compute as asked.

        Raises:
            ConfigError: If not; says what it can do, or what to install.
        """
        require(self.packages, self.extra)
        if precision not in (None, *self.precisions):
            raise ConfigError(f"the engine {self.name} computes in {' and '.join(self.precisions)} only")
        if augmentation != NO_TTA and not self.has_tta:
            raise ConfigError(f"the engine {self.name} cannot average scales and flips; use --engine torch")


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
    check_finite(bool(np.isfinite(scores).all()))
    return scores


def check_finite(is_finite: bool) -> None:
    """Raises a `CheckpointError` if scores are not finite."""
    if not is_finite:
        raise CheckpointError("the model's scores of an image are not finite: its weights are damaged or diverged")
