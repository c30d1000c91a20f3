"""An image of which neither the scores nor the mask should be in memory whole. Knows no torch."""

from typing import NamedTuple

import numpy as np

from exfuse.data.samples import UInt8Array
from exfuse.inference.predictor import Prediction, Predictor
from exfuse.inference.strips import PngStreamWriter, Sink
from exfuse.inference.tiles import Tiling, label_strips

PREVIEW_SIDE = 2048  # pixels, at most


class LargePrediction(NamedTuple):
    """What is left of a large prediction besides its mask.

    Attributes:
        preview: Every n-th pixel of every n-th row.
        fractions: Each class's share of all pixels; see `Prediction.class_fractions`.
    """

    preview: Prediction
    fractions: dict[str, float]


def predict_large(predictor: Predictor, image: UInt8Array, tiling: Tiling, mask: Sink) -> LargePrediction:
    """Segments an image in tiles and writes its mask as a palette PNG, strip by strip.

    Args:
        predictor: The model.
        image: RGB, uint8, `(H, W, 3)`.
        tiling: How to cut it; see `label_strips`.
        mask: Where the PNG goes.

    Raises:
        ConfigError: If the tiling makes no sense.
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
        rows.append(strip[-top % stride :: stride, ::stride].copy())  # else the strip would stay
        top += len(strip)
    writer.finish()
    small = np.ascontiguousarray(image[::stride, ::stride])
    preview = Prediction(small, np.concatenate(rows), predictor.info)
    shares = counts / counts.sum()
    return LargePrediction(preview, {name: float(share) for name, share in zip(names, shares, strict=True)})
