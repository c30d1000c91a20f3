"""The inference form of a network: the same function with fewer and smaller operations.

Each batch norm, which in eval mode scales and shifts each channel, is merged into the preceding convolution. The linear
tail of the decoder (transposed convolutions and densely adjacent prediction) becomes one convolution and a pixel
shuffle; see `FoldedTail`.
"""

import copy
import itertools
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from exfuse.errors import ConfigError
from exfuse.layers import DapControlConv, DenselyAdjacentPrediction, LearnedUpsample
from exfuse.models.backbones.base import pairs_by_name
from exfuse.models.exfuse import ExFuse, FullSizeHead, QuarterSizeHead
from exfuse.models.semantic_supervision import body_of

LARGEST_REACH = 3  # a tail needs 2 * reach + 1 positions, and the map of the smallest image has 8 x 8
PROBED_AT_ONCE = 64  # channels; bounds the memory

Position = tuple[int, int]  # row and column of the tail's input


def fold(model: ExFuse) -> ExFuse:
    """Returns the inference form of a network in eval mode; its logits differ only by rounding.

    Args:
        model: The network; not changed.

    Raises:
        ConfigError: If a batch norm belongs to no convolution; the message contains its name.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_batch_norms(folded)
    _fold_head(folded.head, next(folded.parameters()))
    return folded


def _fold_head(head: nn.Module, like: Tensor) -> None:
    """Replaces the linear tail of a head, if it has one, by a `FoldedTail` with the dtype and device of `like`."""
    if isinstance(head, QuarterSizeHead) and 0 < _pixel_reach(head.dap) <= LARGEST_REACH:
        tail = nn.Sequential(head.classify, head.dap)
        head.classify, head.dap = FoldedTail(tail, head.in_channels, 1, _pixel_reach(head.dap), like), nn.Identity()
    if isinstance(head, FullSizeHead) and isinstance(head.refine1, nn.Identity) and _pixel_reach(head.dap) > 0:
        upsample2, upsample1, reach = head.upsample2, head.upsample1, _input_reach(_pixel_reach(head.dap))
        if isinstance(upsample2, LearnedUpsample) and isinstance(head.refine2, nn.Identity):
            tail, reach = nn.Sequential(upsample2, upsample1, head.dap), _input_reach(reach)
            if reach <= LARGEST_REACH:
                head.upsample2 = FoldedTail(tail, upsample2.in_channels, 4, reach, like)
                head.upsample1, head.dap = nn.Identity(), nn.Identity()
        elif isinstance(upsample1, LearnedUpsample) and reach <= LARGEST_REACH:
            head.upsample1 = FoldedTail(nn.Sequential(upsample1, head.dap), upsample1.in_channels, 2, reach, like)
            head.dap = nn.Identity()


def _pixel_reach(prediction: nn.Module) -> int:
    """Returns how many neighbouring pixels in each direction a prediction layer reads for one pixel."""
    if isinstance(prediction, DenselyAdjacentPrediction):
        return prediction.window // 2
    return prediction.convolution.kernel_size[0] // 2 if isinstance(prediction, DapControlConv) else 0


def _input_reach(pixels: int) -> int:
    """Returns the reach, in input positions, of a transposed convolution whose output is read with a pixel reach."""
    return (pixels + 2) // 2  # 4 x 4, stride 2: a pixel depends on its own position and the nearest other one


class FoldedTail(nn.Module):
    """The linear tail of a decoder as one convolution and a pixel shuffle.

    Let f be the tail: (transposed) convolutions followed by densely adjacent prediction, each with zero padding. It
    maps each input position to a block of `scale` x `scale` pixels with K scores. f is affine, and away from the border
    it is translation-equivariant: shifting its input by one position shifts its output by one block. The scores of a
    block are therefore a fixed affine function of the positions within `reach`: of 3 x 3 positions for a window of 3
    after 4 x 4 transposed convolutions of stride 2. Two transposed convolutions of D channels and the averaging become
    one convolution from D to K * scale^2 channels and a pixel shuffle, without a larger map of D channels.

    In the first and last `reach` rows and columns, an inner layer of f reads zero padding at positions where the single
    convolution would compute other values. There f is also a fixed affine function, one for each distance from the
    sides and corners: for a window of 3, eight more kernels, each applied to its own positions.

    All kernels are measured from f in float64. Its response to zero is the bias; its response to a one in a single
    channel of a single position, minus the bias, is a column of a kernel. The grid used is the smallest that contains
    all kinds of positions.

    Args:
        tail: f, which maps `(N, D, H, W)` to `(N, K, scale * H, scale * W)`.
        channels: D.
        scale: Upsampling factor of f.
        reach: Number of neighbouring positions in each direction that a block depends on, at least 1.
        like: A tensor with the dtype and device for the kernels.
    """

    def __init__(self, tail: nn.Module, channels: int, scale: int, reach: int, like: Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.reach = reach
        exact = copy.deepcopy(tail).double()
        for (row, column), (weight, bias) in _probe(exact, channels, scale, reach, like.device).items():
            self.register_buffer(f"weight_{row}_{column}", weight.to(like.dtype))
            self.register_buffer(f"bias_{row}_{column}", bias.to(like.dtype))

    def forward(self, y: Tensor) -> Tensor:
        """Maps `(N, D, H, W)` to `(N, K, scale * H, scale * W)`, computed in at least float32.

        Args:
            y: The decoder's map; H and W at least `2 * reach + 1`.
        """
        with torch.autocast(y.device.type, enabled=False):
            y = y.to(torch.promote_types(y.dtype, self.weight_0_0.dtype))  # type: ignore[arg-type]
            spans = [(index, self._input_span(index)) for index in range(_side(self.reach))]
            rows = [
                torch.cat([self._scores(y[:, :, height, width], row, column) for column, width in spans], dim=3)
                for row, height in spans
            ]
            scores = torch.cat(rows, dim=2)
            return scores if self.scale == 1 else F.pixel_shuffle(scores, self.scale)

    def _input_span(self, index: int) -> slice:
        """Returns the rows (or columns) of the input that the kernels of a row (or column) of the grid read."""
        if index < self.reach:
            return slice(0, index + self.reach + 1)
        if index == self.reach:
            return slice(None)
        return slice(index - self.reach - _side(self.reach), None)

    def _scores(self, y: Tensor, row: int, column: int) -> Tensor:
        """Computes the scores of the positions that share a kernel, from the input that they read."""
        weight = self.get_buffer(f"weight_{row}_{column}")
        return F.conv2d(y, weight, self.get_buffer(f"bias_{row}_{column}"))


def _side(reach: int) -> int:
    """Returns the side of the smallest grid on which no position is within `reach` of two opposite borders."""
    return 2 * reach + 1


@torch.no_grad()
def _probe(
    tail: nn.Module, channels: int, scale: int, reach: int, device: torch.device
) -> dict[Position, tuple[Tensor, Tensor]]:
    """Returns kernel and bias for each position of the grid; kernels near the border are cropped at it."""
    side = _side(reach)
    positions = list(itertools.product(range(side), range(side)))
    zeros = torch.zeros(1, channels, side, side, dtype=torch.float64, device=device)
    baseline = tail(zeros)
    # Output position -> taps of its kernel in order, each `(D, K * scale^2)` in the channel order of pixel shuffle.
    taps: dict[Position, list[Tensor]] = {output: [] for output in positions}
    for row, column in positions:
        near = [output for output in positions if max(abs(output[0] - row), abs(output[1] - column)) <= reach]
        responses: dict[Position, list[Tensor]] = {output: [] for output in near}
        for chunk in torch.split(torch.arange(channels), PROBED_AT_ONCE):
            impulses = zeros.repeat(len(chunk), 1, 1, 1)
            impulses[torch.arange(len(chunk)), chunk, row, column] = 1
            difference = tail(impulses) - baseline
            for output in near:
                responses[output].append(difference[_block(output, scale)].flatten(1))
        for output in near:
            taps[output].append(torch.cat(responses[output]))
    return {
        output: (_kernel(output, columns, channels, reach), baseline[_block(output, scale)].flatten())
        for output, columns in taps.items()
    }


def _block(position: Position, scale: int) -> tuple[EllipsisType, slice, slice]:
    """Returns the index of a position's block of pixels."""
    row, column = position
    return ..., slice(row * scale, (row + 1) * scale), slice(column * scale, (column + 1) * scale)


def _kernel(position: Position, taps: list[Tensor], channels: int, reach: int) -> Tensor:
    rows, columns = (_side(reach) - abs(index - reach) for index in position)
    return torch.stack(taps, dim=-1).transpose(0, 1).reshape(-1, channels, rows, columns).contiguous()


def _fold_batch_norms(model: ExFuse) -> None:
    """Merges each batch norm into its convolution; a backbone that declares no pairs is not changed."""
    body = body_of(model.backbone)
    pairs = itertools.chain(pairs_by_name(model), model.backbone.conv_norm_pairs() or ())
    for parent, first, second in list(pairs):
        convolution, norm = getattr(parent, first), getattr(parent, second)
        dtype = convolution.weight.dtype
        merged = fuse_conv_bn_eval(convolution.double(), norm.double()).to(dtype)  # float64: rounds only once
        setattr(parent, first, merged)
        setattr(parent, second, nn.Identity())
    excluded = set(body.modules()) if body.conv_norm_pairs() is None else set()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in excluded:
            raise ConfigError(
                f"{name}: batch norm without a convolution; add the pair to {type(body).__name__}.conv_norm_pairs"
            )
