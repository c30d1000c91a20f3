"""Joint augmentation of an image and its mask, determined by (seed, epoch, index) alone."""

from dataclasses import dataclass

import cv2
import numpy as np

from exfuse.data.classes import Color
from exfuse.data.samples import Sample, UInt8Array

GREY = np.array([0.299, 0.587, 0.114])  # luma weights (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    """The random augmentation of training samples.

    Attributes:
        crop_size: Height and width of the result, in pixels.
        scale: Range of the scale factor, drawn uniformly.
        flip: Probability of a horizontal flip.
        brightness: Largest relative change of the brightness, 0 to 1; likewise `contrast` and `saturation`.
        contrast: See `brightness`.
        saturation: See `brightness`.
        fill: RGB colour of the padding beyond the image's border.
        ignore_index: Label of the padding beyond the image's border.
    """

    crop_size: tuple[int, int]
    scale: tuple[float, float]
    flip: float
    brightness: float
    contrast: float
    saturation: float
    fill: Color
    ignore_index: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Returns the augmented sample, of size `crop_size`."""
        image, mask = self._crop(sample, rng)
        return Sample(jitter_colors(image, self.brightness, self.contrast, self.saturation, rng), mask)

    def _crop(self, sample: Sample, rng: np.random.Generator) -> tuple[UInt8Array, UInt8Array]:
        """Scales, crops and flips in one resampling, so that only the crop's pixels are computed."""
        height, width = self.crop_size
        scale = rng.uniform(*self.scale)
        top = _offset(sample.image.shape[0] * scale, height, rng)
        left = _offset(sample.image.shape[1] * scale, width, rng)
        mirrored = rng.random() < self.flip
        # Crop pixel (x, y) shows the source at ((x + left + 0.5) / scale - 0.5, ...); a mirrored crop is read from
        # right to left.
        x_step, x_first = (-1 / scale, width - 1) if mirrored else (1 / scale, 0)
        to_source = np.array(
            [
                [x_step, 0.0, (x_first + left + 0.5) / scale - 0.5],
                [0.0, 1 / scale, (top + 0.5) / scale - 0.5],
            ]
        )
        size = (width, height)
        smooth = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        nearest = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(sample.image, to_source, size, flags=smooth, borderValue=self.fill)
        mask = cv2.warpAffine(sample.mask, to_source, size, flags=nearest, borderValue=(self.ignore_index,))
        return np.asarray(image, dtype=np.uint8), np.asarray(mask, dtype=np.uint8)


def jitter_colors(
    image: UInt8Array, brightness: float, contrast: float, saturation: float, rng: np.random.Generator
) -> UInt8Array:
    """Changes an RGB image's brightness, saturation and contrast by random factors b, s and c.

    In this order: p -> b p, p -> p + (s - 1)(p - g), p -> p + (c - 1)(p - m), where g is a pixel's grey value and m its
    mean over the image. For a given image this is one affine map of the colours, so it is applied in one pass; the
    result is within one level of the exact value.

    Args:
        image: uint8 `(H, W, 3)`.
        brightness: Largest relative change, 0 to 1.
        contrast: Likewise.
        saturation: Likewise.
        rng: Three numbers are drawn from it.
    """
    limits = (brightness, contrast, saturation)
    brightness_factor, contrast_factor, saturation_factor = (1 + rng.uniform(-limit, limit) for limit in limits)
    linear = saturation_factor * np.eye(3) + (1 - saturation_factor) * np.broadcast_to(GREY, (3, 3))
    mean_grey = float(GREY @ cv2.mean(image)[:3])
    offset = np.full((3, 1), (1 - contrast_factor) * brightness_factor * mean_grey)
    # OpenCV rounds and clips to 0 to 255.
    changed = cv2.transform(image, np.hstack([contrast_factor * brightness_factor * linear, offset]))
    return np.asarray(changed, dtype=np.uint8)


def _offset(size: float, crop: int, rng: np.random.Generator) -> float:
    """Draws the start of a crop along one side; an image smaller than the crop is placed at random within it."""
    slack = size - crop
    return float(rng.uniform(min(slack, 0.0), max(slack, 0.0)))
