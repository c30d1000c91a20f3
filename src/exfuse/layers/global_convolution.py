"""The two blocks of the GCN baseline (Peng et al., "Large Kernel Matters", CVPR 2017)."""

from torch import Tensor, nn
from torch.nn import functional as F


class GlobalConvolution(nn.Module):
    """A g x g receptive field from the sum of two separable branches (GCN, section 3.1, figure 2B).

    One branch is g x 1 then 1 x g, the other 1 x g then g x 1. The block contains no normalisation and no
    nonlinearity, so with zero bias in the first convolution of each branch it equals one dense g x g convolution,
    including its zero padding.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels D of the output, and of both branches between their convolutions.
        kernel_size: Kernel size g, odd.

    Raises:
        ValueError: If `kernel_size` is even or below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"GlobalConvolution needs an odd kernel_size of at least 1, got {kernel_size}")
        tall, flat = (kernel_size, 1), (1, kernel_size)
        self.tall_then_flat = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, tall, padding="same"),
            nn.Conv2d(out_channels, out_channels, flat, padding="same"),
        )
        self.flat_then_tall = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, flat, padding="same"),
            nn.Conv2d(out_channels, out_channels, tall, padding="same"),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # No nonlinearity follows, so a gain of 1 preserves the variance of the features.
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps features `(N, C, H, W)` to `(N, D, H, W)`."""
        return self.tall_then_flat(x) + self.flat_then_tall(x)  # type: ignore[no-any-return]


class BoundaryRefinement(nn.Module):
    """A residual block that sharpens score maps: `x + conv3x3(relu(conv3x3(x)))` (GCN, section 3.1, figure 2C).

    Args:
        channels: Channels D of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]
        # The residual starts small, so a chain of these blocks starts close to the identity.
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="linear")
        self.conv2.weight.data.mul_(0.1)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps scores `(N, D, H, W)` to refined scores of the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]
