"""Explicit channel resolution embedding (ExFuse)."""

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelResolutionEmbedding(nn.Module):
    """Sub-pixel upsampling: a 3 x 3 convolution to `scale * scale * D` channels, then a pixel shuffle to D channels.

    Replaces the decoder's first transposed convolution. The pixel shuffle has no weights, so an auxiliary segmentation
    loss on the output supervises the convolution's channels directly and makes them encode spatial detail.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels D of the output.
        scale: Upsampling factor of height and width.

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
