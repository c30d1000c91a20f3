"""Densely adjacent prediction (ExFuse): a pixel's score is the mean of its neighbours' predictions for it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.layers.precision import in_float32


class DenselyAdjacentPrediction(nn.Module):
    """Averages, at each pixel, the k * k predictions made at the pixels of the window around it.

    The K * k * k input channels are k * k groups of K classes, group-major: channel `g * K + c` is class c in group
    `g = a * k + b`, and group (a, b) is read at offset (a - k // 2, b - k // 2) from the output pixel:

    `r[c, i, j] = 1 / (k * k) * sum_{a, b} y[(a * k + b) * K + c, i + a - k // 2, j + b - k // 2]`

    with zeros outside the grid. There are no weights. A window of 1 is the identity.

    This is not the mean of a pixel's own k * k channels (a pixel shuffle followed by average pooling): each group is
    read at a different offset.

    Args:
        num_classes: Number of classes K.
        window: Window size k, odd.

    Raises:
        ValueError: If `window` is even or below 1, or `num_classes` is below 1.
    """

    def __init__(self, num_classes: int, window: int = 3) -> None:
        super().__init__()
        check_window(window)
        if num_classes < 1:
            raise ValueError(f"DenselyAdjacentPrediction needs at least one class, got {num_classes}")
        self.num_classes = num_classes
        self.window = window

    def forward(self, y: Tensor) -> Tensor:
        """Maps `(N, K * k * k, H, W)` to `(N, K, H, W)`, summed in at least float32.

        Raises:
            ValueError: If `y` does not have K * k * k channels.
        """
        classes, window = self.num_classes, self.window
        if y.shape[1] != classes * window * window:
            raise ValueError(f"expected {classes} * {window} * {window} channels, got {y.shape[1]}")
        # Under autocast y is bfloat16, which is too coarse for scores that are interpolated and compared afterwards.
        precise = torch.promote_types(y.dtype, torch.float32)
        if window == 1:
            return y.to(precise)
        height, width = y.shape[-2:]
        padded = F.pad(y, [window // 2] * 4)
        groups = [
            padded[:, group * classes : (group + 1) * classes, a : a + height, b : b + width]
            for group, (a, b) in enumerate((a, b) for a in range(window) for b in range(window))
        ]
        total = groups[0].to(precise)
        for group_scores in groups[1:]:
            total = total + group_scores
        return total * (1 / (window * window))  # OpenVINO would rewrite a division, and lose the float32

    def extra_repr(self) -> str:
        """Adds the arguments to the printed model."""
        return f"num_classes={self.num_classes}, window={self.window}"


class DapControlConv(nn.Module):
    """Control for densely adjacent prediction: one (k + 2) x (k + 2) convolution to K scores.

    Away from the border, a 3 x 3 convolution followed by densely adjacent prediction equals one such convolution.

    Args:
        num_classes: Number of classes K.
        window: Window size k, odd.

    Raises:
        ValueError: If `window` is even or below 1.
    """

    def __init__(self, num_classes: int, window: int) -> None:
        super().__init__()
        check_window(window)
        kernel_size = window + 2
        self.convolution = nn.Conv2d(
            num_classes * window**2, num_classes, kernel_size=kernel_size, padding=kernel_size // 2
        )

    def forward(self, y: Tensor) -> Tensor:
        """Maps `(N, K * k * k, H, W)` to `(N, K, H, W)`, computed in at least float32, like all scores."""
        return in_float32(self.convolution, y)


def check_window(window: int) -> None:
    """Checks the window k of densely adjacent prediction.

    Raises:
        ValueError: If it is even (no pixel would be its centre) or below 1.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"densely adjacent prediction needs an odd window of at least 1, got {window}")
