"""Normalisation of uint8 images, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalises RGB images: `(images / 255 - mean) / std`.

    Args:
        images: uint8 `(N, 3, H, W)`.
        mean: RGB mean, 0 to 1.
        std: RGB standard deviation, on the same scale.

    Returns:
        float32 `(N, 3, H, W)`; the mean colour becomes zero, so zero padding is padding with the mean colour.
    """
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - shift) / scale
