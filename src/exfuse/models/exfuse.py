"""The ExFuse network: a backbone, the GCN decoder and the paper's parts, each with its own switch."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.layers import (
    BoundaryRefinement,
    ChannelResolutionEmbedding,
    DapControlConv,
    DenselyAdjacentPrediction,
    GlobalConvolution,
    LearnedUpsample,
    SemanticEmbeddingBranch,
)
from exfuse.layers.precision import in_float32
from exfuse.models.backbones import Backbone
from exfuse.models.options import PAD_MULTIPLE, DecoderWidth, ModelOptions

MAX_CLASSES = 255


class ExFuseOutput(NamedTuple):
    """The network's output.

    Attributes:
        logits: Class scores `(N, K, H, W)`, float32, at the size of the images.
        auxiliary_logits: In training mode, the scores `(N, K, H', W')` of each auxiliary prediction at its own stride;
            empty in eval mode.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...]


class ExFuse(nn.Module):
    """ExFuse (Zhang et al., ECCV 2018) on the GCN baseline; with every part off it is the baseline.

    Args:
        backbone: Feature extractor with outputs at strides 4, 8, 16 and 32.
        num_classes: Number of classes K, 2 to 255: a label is one byte, and one value is reserved for "ignore".
        options: The switches of the network; None means the defaults.

    Raises:
        ValueError: If `num_classes` is out of range.
    """

    name: str | None = None  # set by `create_model`

    def __init__(self, backbone: Backbone, num_classes: int, options: ModelOptions | None = None) -> None:
        super().__init__()
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be 2 to {MAX_CLASSES}, got {num_classes}")
        self.options = options = options or ModelOptions()
        self.num_classes = num_classes
        self.backbone = backbone
        c2, c3, c4, c5 = backbone.channels
        window, kernel = options.dap_window, options.gcn_kernel
        width = _decoder_channels(options.decoder_width, num_classes, window)

        self.seb2 = self.seb3 = self.seb4 = None
        if options.semantic_embedding:
            form = (options.semantic_embedding_norm, options.semantic_embedding_width)
            self.seb2 = SemanticEmbeddingBranch(c2, (c3, c4, c5), *form)
            self.seb3 = SemanticEmbeddingBranch(c3, (c4, c5), *form)
            self.seb4 = SemanticEmbeddingBranch(c4, (c5,), *form)

        self.gcn5 = nn.Sequential(GlobalConvolution(c5, width, kernel), BoundaryRefinement(width))
        self.ecre: nn.Module
        if options.channel_resolution_embedding:
            self.ecre = ChannelResolutionEmbedding(width, width)
        else:
            self.ecre = LearnedUpsample(width, width)
        with_auxiliary = options.auxiliary_prediction
        if with_auxiliary is None:
            with_auxiliary = options.channel_resolution_embedding
        self.auxiliary_head = nn.Conv2d(width, num_classes, kernel_size=1) if with_auxiliary else None

        self.fuse4 = Fusion(c4, width, kernel)
        self.upsample4 = LearnedUpsample(width, width)
        self.fuse3 = Fusion(c3, width, kernel)
        self.upsample3 = LearnedUpsample(width, width)
        self.fuse2 = Fusion(c2, width, kernel)
        self.head: nn.Module
        # Without densely adjacent prediction, narrow and wide are the same.
        named = {"narrow", "wide"} if window == 1 else {options.decoder_width}
        is_narrow, is_wide = (options.decoder_width in named and word in named for word in ("narrow", "wide"))
        if options.decoder == "full":
            self.head = FullSizeHead(width, num_classes, window, options.dap_control_conv, is_narrow)
        else:
            self.head = QuarterSizeHead(width, num_classes, window, options.dap_control_conv, is_wide)

    def forward(self, images: Tensor) -> ExFuseOutput:
        """Segments images.

        Args:
            images: Normalised images `(N, 3, H, W)` of any H and W. They are padded with zeros (the mean colour) at the
                bottom and right to multiples of 32, and the scores are cropped back.

        Returns:
            Scores `(N, K, H, W)`, float32 even under autocast, and in training mode the auxiliary scores.
        """
        height, width = images.shape[-2:]
        logits, auxiliary = self.segment(pad_to_multiple(images))
        return ExFuseOutput(logits[..., :height, :width], auxiliary)

    def segment(self, padded: Tensor) -> ExFuseOutput:
        """Segments normalised images `(N, 3, H, W)` with H and W multiples of 32."""
        x2, x3, x4, x5 = self.backbone(padded)
        if self.seb2 is not None and self.seb3 is not None and self.seb4 is not None:
            x2, x3, x4 = self.seb2(x2, x3, x4, x5), self.seb3(x3, x4, x5), self.seb4(x4, x5)

        up4 = self.ecre(self.gcn5(x5))
        up3 = self.upsample4(self.fuse4(up4, x4))
        up2 = self.upsample3(self.fuse3(up3, x3))
        logits = self.head(self.fuse2(up2, x2))

        auxiliary: tuple[Tensor, ...] = ()
        if self.training and self.auxiliary_head is not None:
            auxiliary = (in_float32(self.auxiliary_head, up4),)
        return ExFuseOutput(logits, auxiliary)


def pad_to_multiple(images: Tensor) -> Tensor:
    """Pads images `(N, C, H, W)` with zeros at the bottom and right until H and W are multiples of 32."""
    # Rounding up like this works with the symbolic sizes of torch.export; computing a remainder does not.
    bottom, right = ((side + PAD_MULTIPLE - 1) // PAD_MULTIPLE * PAD_MULTIPLE - side for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom))


class Fusion(nn.Module):
    """One step of the decoder: `refine(upsampled + refine(global_convolution(x)))` (GCN, figure 2A)."""

    def __init__(self, in_channels: int, width: int, gcn_kernel: int) -> None:
        super().__init__()
        self.project = nn.Sequential(GlobalConvolution(in_channels, width, gcn_kernel), BoundaryRefinement(width))
        self.refine: nn.Module = BoundaryRefinement(width)

    def forward(self, upsampled: Tensor, x: Tensor) -> Tensor:
        """Fuses a level's feature `x`, `(N, C, H, W)`, into the decoder's map `upsampled`, `(N, D, H, W)`."""
        return self.refine(upsampled + self.project(x))  # type: ignore[no-any-return]


class FullSizeHead(nn.Module):
    """Upsamples from stride 4 to full size by two transposed convolutions, followed by densely adjacent prediction.

    GCN has a boundary refinement after each transposed convolution. Here the first has one only if the decoder is
    narrow (K channels, by its option), and the second only if its output is final, that is, neither averaged nor
    convolved, as in the baseline. A refinement of K * k * k channels at full size would cost several times the backbone
    (21 classes, window 3: 169 G multiply-adds at 512 x 512); the paper's figure 2 has no refinement here and no map of
    that width.
    """

    def __init__(self, width: int, num_classes: int, dap_window: int, dap_control_conv: bool, is_narrow: bool) -> None:
        super().__init__()
        self.upsample2: nn.Module = LearnedUpsample(width, width)
        self.refine2 = BoundaryRefinement(width) if is_narrow else nn.Identity()
        self.upsample1: nn.Module = LearnedUpsample(width, num_classes * dap_window**2)
        is_last = dap_window == 1 and not dap_control_conv
        self.refine1 = BoundaryRefinement(num_classes) if is_last else nn.Identity()
        self.dap = _prediction(num_classes, dap_window, dap_control_conv)

    def forward(self, y: Tensor) -> Tensor:
        """Maps the decoder's features `(N, D, H / 4, W / 4)` to scores `(N, K, H, W)`, float32."""
        y = self.refine2(self.upsample2(y))
        if isinstance(self.refine1, BoundaryRefinement):  # upsample1 computes scores, which must be float32
            y = in_float32(self.refine1, in_float32(self.upsample1, y))
        else:
            y = self.upsample1(y)
        return self.dap(y)  # type: ignore[no-any-return]


class QuarterSizeHead(nn.Module):
    """Predicts at stride 4 and upsamples the scores bilinearly; several times cheaper than `FullSizeHead`.

    A wide decoder (by its option) already has K * k * k channels; after any other, a 1 x 1 convolution produces them.
    """

    def __init__(self, width: int, num_classes: int, dap_window: int, dap_control_conv: bool, is_wide: bool) -> None:
        super().__init__()
        self.in_channels = width
        self.classify: nn.Module = nn.Identity()
        if not is_wide:
            self.classify = nn.Conv2d(width, num_classes * dap_window**2, kernel_size=1)
        self.dap = _prediction(num_classes, dap_window, dap_control_conv)

    def forward(self, y: Tensor) -> Tensor:
        """Maps the decoder's features `(N, D, H / 4, W / 4)` to scores `(N, K, H, W)`, float32."""
        scores = self.dap(in_float32(self.classify, y))
        return F.interpolate(scores, scale_factor=4.0, mode="bilinear", align_corners=False)


def _prediction(num_classes: int, dap_window: int, plain: bool) -> nn.Module:
    return (DapControlConv if plain else DenselyAdjacentPrediction)(num_classes, dap_window)


def _decoder_channels(decoder_width: DecoderWidth, num_classes: int, dap_window: int) -> int:
    if decoder_width == "wide":
        return num_classes * dap_window**2
    if decoder_width == "narrow":
        return num_classes
    return decoder_width
