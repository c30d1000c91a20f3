"""Predicting label maps of images with a trained model."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias, overload

import numpy as np
from PIL import Image

from exfuse.data.pixels import UInt8Array, picture_to_rgb
from exfuse.data.png_stream import PngStreamWriter, Sink
from exfuse.data.samples import read_image
from exfuse.drawing import blend, with_legend
from exfuse.errors import ConfigError, DataError
from exfuse.export.open import open_engine
from exfuse.inference.engines.base import Engine, Float32Array, Precision
from exfuse.inference.tiling import Tiling, label_strips
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.storage.metadata import ModelMetadata

BATCH_PIXELS = 1 << 22  # most pixels of images computed together; a larger image is computed alone
NOTEBOOK_SIDE = 1024  # longest side of a prediction's picture in a notebook, in pixels
PREVIEW_SIDE = 2048  # longest side of a large prediction's preview, in pixels

# A path, a file's bytes, a file open for reading in binary mode, a Pillow image, or an RGB uint8 array `(H, W, 3)`.
ImageSource: TypeAlias = str | Path | bytes | IO[bytes] | Image.Image | UInt8Array


@dataclass(frozen=True)
class Prediction:
    """The label map of one image. A notebook shows it as an overlay.

    Attributes:
        image: The image, RGB uint8 `(H, W, 3)`.
        labels: The class of each pixel, uint8 `(H, W)`.
        info: The model's metadata, with the names and colours of the classes.
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
        """Returns the image blended with the classes' colours, above a legend of the classes found.

        Args:
            opacity: Of the colours, 0 to 1.
        """
        colored = blend(self.image, self.labels, self.info.palette, opacity)
        found = [int(label) for label in np.unique(self.labels)]
        return with_legend(colored, [(self.info.class_names[label], self.info.palette[label]) for label in found])

    def class_fractions(self) -> dict[str, float]:
        """Returns each class's fraction of the pixels, 0 to 1; all classes are listed, and the sum is 1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.info.class_names))
        return {
            name: float(count / self.labels.size) for name, count in zip(self.info.class_names, counts, strict=True)
        }

    def _repr_png_(self) -> bytes:
        stride = math.ceil(max(self.labels.shape) / NOTEBOOK_SIDE)
        image, labels = (np.ascontiguousarray(array[::stride, ::stride]) for array in (self.image, self.labels))
        content = io.BytesIO()
        Prediction(image, labels, self.info).overlay().save(content, "PNG")
        return content.getvalue()


class LargePrediction(NamedTuple):
    """The prediction of a large image, without the mask, which was written to a file.

    Attributes:
        preview: Every n-th pixel of every n-th row.
        fractions: Each class's fraction of all pixels; see `Prediction.class_fractions`.
    """

    preview: Prediction
    fractions: dict[str, float]


class Predictor:
    """Segments images with a trained network.

    Args:
        engine: Computes the network.
        info: The model's metadata.
    """

    def __init__(self, engine: Engine, info: ModelMetadata) -> None:
        self.engine = engine
        self.info = info

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        engine: str = "auto",
        precision: Precision | None = None,
        augmentation: TestTimeAugmentation = NO_TTA,
    ) -> "Predictor":
        """Loads a trained model.

        Args:
            source: A model folder, "hf://OWNER/NAME" on the Hugging Face hub, or an export of `exfuse export`.
            engine: "torch", "compile" (torch.compile), "openvino", "onnxruntime" or a registered one; "auto" chooses
                the fastest that is installed and supports the other arguments. `predictor.engine.name` is the choice.
            precision: "fp32" or "bf16"; by default the engine's own. For torch this is "fp32", unless "auto" finds a
                GPU with units for "bf16".
            augmentation: Scales and flips to average; only torch supports them.

        Raises:
            CheckpointError: If the model cannot be loaded.
            ConfigError: If the engine is unknown, not installed, or does not support the other arguments.
        """
        return cls(*open_engine(source, engine, precision, augmentation))

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is itself a sequence of str
        self, images: ImageSource, confidence: bool = ...
    ) -> Prediction: ...

    @overload
    def __call__(self, images: Sequence[ImageSource], confidence: bool = ...) -> list[Prediction]: ...

    def __call__(
        self, images: ImageSource | Sequence[ImageSource], confidence: bool = False
    ) -> Prediction | list[Prediction]:
        """Segments an image or a list of images.

        Args:
            images: An image, or a list or tuple of images. Each is a path, a file's bytes, a file open in binary mode,
                a Pillow image, or an RGB uint8 array `(H, W, 3)`. Consecutive images of one size are computed together.
            confidence: Whether to compute the probability of each label.

        Returns:
            One prediction, or a list with one prediction per image, in the same order.

        Raises:
            DataError: If a file cannot be read, or an array has another shape or type.
        """
        if not isinstance(images, list | tuple):
            return self._predict([_as_pixels(images)], confidence)[0]  # type: ignore[arg-type]
        return [found for batch in _batches(images) for found in self._predict(batch, confidence)]

    def logits(self, image: ImageSource) -> Float32Array:
        """Returns an image's logits, float32 `(K, H, W)`.

        Args:
            image: One image; see `__call__`.

        Raises:
            DataError: See `__call__`.
            ConfigError: If the predictor averages scales and flips, which averages probabilities.
        """
        if self.engine.augmentation != NO_TTA:
            raise ConfigError("logits: test-time augmentation averages probabilities; use probabilities() instead")
        return self._scores(image)

    def probabilities(self, image: ImageSource) -> Float32Array:
        """Returns an image's class probabilities, float32 `(K, H, W)`, 0 to 1; they add up to 1 per pixel.

        Args:
            image: One image; see `__call__`.

        Raises:
            DataError: See `__call__`.
        """
        scores = self._scores(image)
        if self.engine.augmentation == NO_TTA:
            scores = np.exp(scores - scores.max(axis=0))
            scores /= scores.sum(axis=0)
        return scores

    def _scores(self, image: ImageSource) -> Float32Array:
        scores: Float32Array = self.engine.scores(_as_pixels(image)[None])[0]
        return scores

    def _predict(self, images: Sequence[UInt8Array], confidence: bool) -> list[Prediction]:
        """Segments images that all have the same size."""
        batch = images[0][None] if len(images) == 1 else np.stack(images)
        if not confidence:
            return [
                Prediction(image, labels, self.info)
                for image, labels in zip(images, self.engine.labels(batch), strict=True)
            ]
        predictions = []
        for image, scores in zip(images, self.engine.scores(batch), strict=True):
            labels = scores.argmax(axis=0).astype(np.uint8)
            predictions.append(Prediction(image, labels, self.info, self._confidence(scores)))
        return predictions

    def _confidence(self, scores: Float32Array) -> Float32Array:
        largest: Float32Array = scores.max(axis=0)
        if self.engine.augmentation != NO_TTA:
            return largest
        # Only the softmax of the largest score is needed.
        total: Float32Array = np.exp(scores - largest).sum(axis=0)
        return np.float32(1) / total


def predict_large(predictor: Predictor, image: UInt8Array, tiling: Tiling, mask: Sink) -> LargePrediction:
    """Segments an image in tiles and writes its mask as a palette PNG, strip by strip.

    The scores and labels of the whole image are never in memory at once.

    Args:
        predictor: The model.
        image: RGB, uint8, `(H, W, 3)`.
        tiling: How to cut the image; see `label_strips`.
        mask: The file to write the PNG to.

    Raises:
        ConfigError: If the tiling is invalid.
    """
    height, width = image.shape[:2]
    names = predictor.info.class_names
    counts = np.zeros(len(names), dtype=np.int64)
    stride = -(-max(height, width) // PREVIEW_SIDE)
    rows, top = [], 0
    writer = PngStreamWriter(mask, (width, height), predictor.info.palette)
    for strip in label_strips(predictor.engine, image, tiling):
        writer.write(strip)
        counts += np.bincount(strip.ravel(), minlength=len(names))
        rows.append(strip[-top % stride :: stride, ::stride].copy())  # a view would keep the strip in memory
        top += len(strip)
    writer.finish()
    small = np.ascontiguousarray(image[::stride, ::stride])
    preview = Prediction(small, np.concatenate(rows), predictor.info)
    fractions = counts / counts.sum()
    return LargePrediction(preview, {name: float(part) for name, part in zip(names, fractions, strict=True)})


def _batches(images: Sequence[ImageSource]) -> Iterator[list[UInt8Array]]:
    """Yields batches of consecutive images of one size, with up to `BATCH_PIXELS` pixels."""
    batch: list[UInt8Array] = []
    for source in images:
        pixels = _as_pixels(source)
        full = len(batch) * pixels.size + pixels.size > 3 * BATCH_PIXELS
        if batch and (full or pixels.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(pixels)
    if batch:
        yield batch


def _as_pixels(image: ImageSource) -> UInt8Array:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, bytes):
        return read_image(io.BytesIO(image))
    if isinstance(image, Image.Image):
        return picture_to_rgb(image)
    if not isinstance(image, np.ndarray):
        if not hasattr(image, "read"):
            kind = type(image).__name__
            raise DataError(f"expected a path, bytes, an open file, a Pillow image or an array, got {kind}")
        return read_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(f"expected an RGB uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    return np.require(image, requirements=["C", "W"])
