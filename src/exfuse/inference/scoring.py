"""Class probabilities of an image: one pass, or the mean over several scales and mirror images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from exfuse.inference.tta import NO_TTA, TestTimeAugmentation


def class_scores(logits_of: Callable[[Tensor], Tensor], images: Tensor, augmentation: TestTimeAugmentation) -> Tensor:
    """Scores each pixel's classes.

    Args:
        logits_of: The network: `(N, 3, h, w)` to float32 `(N, K, h, w)`.
        images: Normalised images `(N, 3, H, W)`.
        augmentation: What to average.

    Returns:
        float32 `(N, K, H, W)`: the logits of a single pass, or the mean of the passes' softmax probabilities.
    """
    if augmentation == NO_TTA:
        return logits_of(images)
    size = images.shape[-2:]
    total = torch.zeros(())
    for scale in augmentation.scales:
        resized = images
        if scale != 1.0:
            scaled = [max(1, round(side * scale)) for side in size]
            resized = F.interpolate(images, size=scaled, mode="bilinear", align_corners=False, antialias=scale < 1)
        total = total.to(images.device) + _resize(logits_of(resized).softmax(dim=1), size)
        if augmentation.flip:
            mirrored = logits_of(resized.flip(-1)).softmax(dim=1).flip(-1)
            total = total + _resize(mirrored, size)
    return total / augmentation.passes


def most_likely(scores: Tensor) -> Tensor:
    """Returns each pixel's class of largest score, the first of equals: `(N, K, H, W)` to uint8 `(N, H, W)`."""
    # On a CPU this is several times faster than argmax over a dimension that is not the innermost.
    return scores.max(dim=1).indices.to(torch.uint8)


def _resize(scores: Tensor, size: torch.Size) -> Tensor:
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
