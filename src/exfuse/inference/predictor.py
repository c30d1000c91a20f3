"""From an image file to a label map."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from exfuse.data.samples import UInt8Array, read_image
from exfuse.errors import ConfigError, DataError
from exfuse.inference.drawing import blend, with_legend
from exfuse.inference.preprocessing import image_to_tensor, normalize
from exfuse.inference.scoring import TestTimeAugmentation, class_scores, most_likely
from exfuse.models.pretrained import ModelInfo, load_pretrained

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image.

    Attributes:
        image: The image it saw, RGB uint8 `(H, W, 3)`.
        labels: Class of each pixel, uint8 `(H, W)`.
        info: What the labels mean.
    """

    image: UInt8Array
    labels: UInt8Array
    info: ModelInfo

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
        model: An `ExFuse`; moved to `device`.
        info: What its weights mean.
        augmentation: Scales and flips to average; one plain pass by default.
        precision: "fp32", or "bf16" for autocast (the scores stay float32).
        device: Where to compute; by default a GPU if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        augmentation: TestTimeAugmentation | None = None,
        precision: Precision = "fp32",
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.info = info
        self.augmentation = augmentation or TestTimeAugmentation()
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        engine: Literal["auto", "torch"] = "auto",
        augmentation: TestTimeAugmentation | None = None,
        precision: Precision = "fp32",
    ) -> "Predictor":
        """Loads a trained model.

        Args:
            source: A model folder or a repository of the Hugging Face hub.
            engine: What computes; "auto" takes the fastest that is installed. So far there is one: "torch".
            augmentation: Scales and flips to average.
            precision: "fp32" or "bf16".

        Raises:
            CheckpointError: If the model cannot be loaded.
            ConfigError: If the engine is unknown.
        """
        if engine not in ("auto", "torch"):
            raise ConfigError(f"there is no engine {engine!r}; known: auto, torch")
        model, info = load_pretrained(source)
        return cls(model, info, augmentation, precision)

    def __call__(self, image: str | Path | Image.Image | UInt8Array) -> Prediction:
        """Segments one image.

        Args:
            image: A path, a Pillow image, or an RGB uint8 array `(H, W, 3)`.

        Raises:
            DataError: If the file cannot be read or the array is no such image.
        """
        pixels = _as_pixels(image)
        labels = most_likely(self.scores(image_to_tensor(pixels)))[0].cpu().numpy()
        return Prediction(pixels, labels, self.info)

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """Scores uint8 images `(N, 3, H, W)`: float32 `(N, K, H, W)` on the device; see `class_scores`."""
        pixels = normalize(images.to(self.device), self.info.image_mean, self.info.image_std)
        return class_scores(self._logits, pixels.contiguous(memory_format=torch.channels_last), self.augmentation)

    def confidence(self, scores: Tensor) -> Tensor:
        """Returns the probability of each pixel's label, `(N, H, W)`, given what `scores` returned."""
        if self.augmentation != TestTimeAugmentation():
            return scores.amax(dim=1)
        # The softmax of the largest score, without the others' quotients.
        return torch.exp(scores.amax(dim=1) - scores.logsumexp(dim=1))

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(images).logits  # type: ignore[no-any-return]


def _as_pixels(image: str | Path | Image.Image | UInt8Array) -> UInt8Array:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(f"expected an RGB uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    return np.require(image, requirements=["C", "W"])
