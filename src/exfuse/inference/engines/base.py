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
    """Computes a network, including the normalisation of its input and the choice of labels.

    Attributes:
        name: As in `Predictor.from_pretrained`.
        precision: Of the network: "fp32", "bf16" or "int8"; scores are always float32.
        device: The device it computes on, for people to read.
        augmentation: Scales and flips that are averaged; scores are then probabilities, otherwise logits.
    """

    name: str
    precision: str
    device: str
    augmentation: TestTimeAugmentation

    def labels(self, images: UInt8Array) -> UInt8Array:
        """Returns the class with the largest score, the first of equals: RGB `(N, H, W, 3)` to `(N, H, W)`.

        The faster engines choose labels without computing full-size scores, so only `scores` detects scores that are
        not finite. Weights that are not finite, and changed files, are refused when a model is opened.
        """

    def scores(self, images: UInt8Array) -> Float32Array:
        """Returns each class's score: RGB `(N, H, W, 3)` to `(N, K, H, W)`.

        Raises:
            CheckpointError: If a score is not finite.
        """


LoadEngine = Callable[[Path, Precision | None, TestTimeAugmentation], tuple[Engine, ModelMetadata]]


class EngineSpec(NamedTuple):
    """A registered engine: how it is opened and what it supports, known without importing its library.

    Attributes:
        name: As in `Predictor.from_pretrained`.
        load: Called with a path, a precision (None for the engine's default) and the test-time augmentation. Opens an
            exported file or, if `suffix` is None, a model folder.
        suffix: Suffix of the exported files that it computes; None if it computes model folders directly.
        packages: Import names of the packages it needs.
        extra: The extra of exfuse that installs them.
        precisions: The precisions it supports.
        has_tta: Whether it can average scales and flips.
    """

    name: str
    load: LoadEngine
    suffix: str | None = None
    packages: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    has_tta: bool = False

    def check(self, precision: Precision | None, augmentation: TestTimeAugmentation) -> None:
        """Checks that the engine is installed and supports the arguments.

        Raises:
            ConfigError: If not; the message contains what is supported, or what to install.
        """
        require(self.packages, self.extra)
        if precision not in (None, *self.precisions):
            raise ConfigError(f"the engine {self.name} supports {' and '.join(self.precisions)} only, not {precision}")
        if augmentation != NO_TTA and not self.has_tta:
            raise ConfigError(f"the engine {self.name} cannot average scales and flips; use the engine torch")


def checked_labels(labels: UInt8Array, images: UInt8Array, num_classes: int, source: object) -> UInt8Array:
    """Returns the labels computed by an exported file after checking them, since the file may be any model.

    Raises:
        CheckpointError: If they are not one class for each pixel of the images.
    """
    if labels.dtype != np.uint8 or labels.shape != images.shape[:3] or labels.max() >= num_classes:
        raise CheckpointError(f"{source}: its output is not one of {num_classes} classes for each pixel")
    return labels


def checked_scores(scores: Float32Array, images: UInt8Array, num_classes: int, source: object) -> Float32Array:
    """Returns the scores computed by an exported file after checking them.

    Raises:
        CheckpointError: If they are not one for each class and pixel, or one is not finite.
    """
    count, *size = images.shape[:3]
    if scores.dtype != np.float32 or scores.shape != (count, num_classes, *size):
        raise CheckpointError(f"{source}: its output is not {num_classes} scores for each pixel")
    check_finite(bool(np.isfinite(scores).all()))
    return scores


def check_finite(is_finite: bool) -> None:
    """Raises a `CheckpointError` if scores are not finite."""
    if not is_finite:
        raise CheckpointError("the model's scores are not finite; its weights are damaged, or its training diverged")
