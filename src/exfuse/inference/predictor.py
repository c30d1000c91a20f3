"""From an image file to a label map. Knows no torch: an exported model is used without it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from exfuse.data.pixels import UInt8Array, picture_to_rgb
from exfuse.data.samples import read_image
from exfuse.errors import DataError
from exfuse.inference.drawing import blend, with_legend
from exfuse.inference.engines.base import Engine, Float32Array, Precision
from exfuse.inference.opening import EngineName, open_engine
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.metadata import ModelMetadata


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image.

    Attributes:
        image: The image it saw, RGB uint8 `(H, W, 3)`.
        labels: Class of each pixel, uint8 `(H, W)`.
        info: What the labels mean.
        confidence: The probability of each pixel's label, float32 `(H, W)`; None unless it was asked for.
    """

    image: UInt8Array
    labels: UInt8Array
    info: ModelMetadata
    confidence: Float32Array | None = None

    def mask(self) -> Image.Image:
        """Returns the labels as an 8-bit palette image: the values are the classes, the colours the palette."""
        mask = Image.fromarray(self.labels).convert("P")
        mask.putpalette([value for color in self.info.palette for value in color])
        return mask

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """Returns the image with the classes' colours over it and, below, a legend of the classes found.

        Args:
            opacity: Of the colours, 0 to 1.
        """
        colored = blend(self.image, self.labels, self.info.palette, opacity)
        found = [int(label) for label in np.unique(self.labels)]
        return with_legend(colored, [(self.info.class_names[label], self.info.palette[label]) for label in found])

    def class_fractions(self) -> dict[str, float]:
        """Returns each class's share of the pixels; all classes, adding up to 1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.info.class_names))
        return {
            name: float(count / self.labels.size) for name, count in zip(self.info.class_names, counts, strict=True)
        }


class Predictor:
    """Segments images with a trained network.

    Args:
        engine: What computes it.
        info: What its labels mean.
    """

    def __init__(self, engine: Engine, info: ModelMetadata) -> None:
        self.engine = engine
        self.info = info

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        engine: EngineName = "auto",
        precision: Precision | None = None,
        augmentation: TestTimeAugmentation = NO_TTA,
    ) -> "Predictor":
        """Loads a trained model.

        Args:
            source: A model folder, "hf://OWNER/NAME" on the Hugging Face hub, or what `exfuse export` wrote.
            engine: What computes: "torch", "compile" (torch.compile), "openvino", "onnxruntime"; "auto" takes the
                fastest that is installed and can do it, and `predictor.engine.name` says which.
            precision: "fp32" or "bf16"; by default the engine's own, which is "fp32" with torch unless "auto" finds
                a graphics card with units for "bf16".
            augmentation: Scales and flips to average, which torch alone does.

        Raises:
            CheckpointError: If the model cannot be loaded.
            ConfigError: If the engine is unknown, not installed, or cannot do what is asked.
        """
        return cls(*open_engine(source, engine, precision, augmentation))

    def __call__(self, image: str | Path | Image.Image | UInt8Array, confidence: bool = False) -> Prediction:
        """Segments one image.

        Args:
            image: A path, a Pillow image, or an RGB uint8 array `(H, W, 3)`.
            confidence: Whether to give the labels' probabilities, too.

        Raises:
            DataError: If the file cannot be read or the array is no such image.
        """
        pixels = _as_pixels(image)
        if not confidence:
            return Prediction(pixels, self.engine.labels(pixels[None])[0], self.info)
        scores = self.engine.scores(pixels[None])[0]
        labels = scores.argmax(axis=0).astype(np.uint8)
        return Prediction(pixels, labels, self.info, self._confidence(scores))

    def scores(self, image: str | Path | Image.Image | UInt8Array) -> Float32Array:
        """Returns the classes' scores, float32 `(K, H, W)`: logits, or probabilities where several are averaged.

        Args:
            image: As above.

        Raises:
            DataError: As above.
        """
        scores: Float32Array = self.engine.scores(_as_pixels(image)[None])[0]
        return scores

    def _confidence(self, scores: Float32Array) -> Float32Array:
        largest: Float32Array = scores.max(axis=0)
        if self.engine.augmentation != NO_TTA:
            return largest
        # The softmax of the largest score, without the others' quotients.
        total: Float32Array = np.exp(scores - largest).sum(axis=0)
        return np.float32(1) / total


def _as_pixels(image: str | Path | Image.Image | UInt8Array) -> UInt8Array:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return picture_to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(f"expected an RGB uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    return np.require(image, requirements=["C", "W"])
