"""The semantic embedding branch (ExFuse): high-level features gate a low-level one."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class SemanticEmbeddingBranch(nn.Module):
    """Multiplies a low-level feature by an embedding of every higher level.

    `x'_l = x_l * prod_{m > l} upsample(conv3x3_m(x_m))`: a 3 x 3 convolution maps each higher level to the low level's
    channels; the result is upsampled bilinearly to the low level's size and multiplied in element by element.

    We know of no statement in the paper about a norm after the convolution. When training from scratch, a plain product
    of unnormalised maps makes the loss jump. With `normalize` (the default here) each factor passes a batch norm that
    starts with mean 1 and standard deviation 0.1, so the branch starts close to the identity.

    Args:
        low_channels: Channels C_l of the low-level feature.
        high_channels: Channels C_m of each higher level, in the order of the arguments of `forward`.
        normalize: Whether a batch norm follows each 3 x 3 convolution; False is the plain product.
        width: If set, a 1 x 1 convolution first reduces each higher level to this many channels, which makes the 3 x 3
            convolution cheaper. None is the paper's form, without that reduction.

    Raises:
        ValueError: If `high_channels` is empty or `width` is below 1.
    """

    def __init__(
        self, low_channels: int, high_channels: Sequence[int], normalize: bool = True, width: int | None = None
    ) -> None:
        super().__init__()
        if not high_channels:
            raise ValueError("SemanticEmbeddingBranch needs at least one higher level")
        if width is not None and width < 1:
            raise ValueError(f"SemanticEmbeddingBranch needs a width of at least 1, got {width}")
        self.embeddings = nn.ModuleList(_embedding(high, low_channels, normalize, width) for high in high_channels)

    def forward(self, low: Tensor, *highs: Tensor) -> Tensor:
        """Embeds the higher levels into the low one.

        Args:
            low: Feature `(N, C_l, H, W)`.
            highs: One feature `(N, C_m, H_m, W_m)` per entry of `high_channels`, of any height and width.

        Returns:
            Feature `(N, C_l, H, W)`.

        Raises:
            ValueError: If the number of `highs` is not that of `high_channels`.
        """
        for embedding, high in zip(self.embeddings, highs, strict=True):
            factor = F.interpolate(embedding(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
            low = low * factor
        return low


def _embedding(high_channels: int, low_channels: int, normalize: bool, width: int | None) -> nn.Module:
    modules: list[nn.Module] = [] if width is None else [nn.Conv2d(high_channels, width, kernel_size=1, bias=False)]
    modules.append(nn.Conv2d(width or high_channels, low_channels, kernel_size=3, padding=1, bias=not normalize))
    if normalize:
        norm = nn.BatchNorm2d(low_channels)
        nn.init.constant_(norm.weight, 0.1)
        nn.init.ones_(norm.bias)
        modules.append(norm)
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
