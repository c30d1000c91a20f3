"""Explicit channel resolution embedding (ExFuse)."""

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelResolutionEmbedding(nn.Module):
    """Sub-pixel upsampling: a convolution to `scale * scale * D` channels, rearranged to D at `scale` times the size.

    It takes the place of the decoder's first transposed convolution. The rearrangement has no weights, so an auxiliary
    segmentation loss on its result reaches the channels themselves and makes them carry resolution.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels D of the output.
        scale: Factor of each side.

    Raises:
        ValueError: If `scale` is below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"ChannelResolutionEmbedding needs a scale of at least 1, got {scale}")
        self.scale = scale
        self.conv = nn.Conv2d(in_channels, out_channels * scale * scale, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, D, scale * H, scale * W)`."""
        return F.pixel_shuffle(self.conv(x), self.scale)
