"""The learned upsampling of the GCN decoder."""

import torch
from torch import Tensor, nn


class LearnedUpsample(nn.Module):
    """Doubles a map's size with a 4 x 4, stride 2 transposed convolution, initialised to bilinear interpolation.

    If `out_channels` is a multiple of `in_channels`, output o starts as the interpolation of input `o % in_channels`,
    so K scores become k * k groups of K, each a copy. Otherwise each output starts as the interpolation of a random
    mixture of all inputs that preserves the variance.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels D of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.deconv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        if out_channels % in_channels == 0:
            mixture = torch.eye(in_channels).repeat(1, out_channels // in_channels)
        else:
            mixture = torch.randn(in_channels, out_channels) / in_channels**0.5
        profile = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.deconv.weight.copy_(mixture[:, :, None, None] * torch.outer(profile, profile))
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, D, 2H, 2W)`."""
        return self.deconv(x)  # type: ignore[no-any-return]
