"""The inference form of a network: the same function with fewer and smaller operations.

Two things are folded. A batch norm, which in eval is a scale and a shift of each channel, goes into the convolution
before it. And the linear tail of the decoder, transposed convolutions and densely adjacent prediction, becomes one
convolution on its input followed by a rearrangement; see `FoldedTail`.
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

LARGEST_REACH = 3  # positions: the decoder's map of the smallest image is 8 x 8
PROBED_AT_ONCE = 64  # channels, which bounds the memory

Place = tuple[int, int]  # row and column on the grid


def fold(model: ExFuse) -> ExFuse:
    """Returns the inference form of a network: equal labels, logits equal but for rounding, in eval only.

    Args:
        model: Left as it is.

    Raises:
        ConfigError: If a batch norm is in none of the pairs that its backbone declares, with its name.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_batch_norms(folded)
    _fold_head(folded.head, next(folded.parameters()))
    return folded


def _fold_head(head: nn.Module, like: Tensor) -> None:
    """Replaces the linear end of a head, where it has one; what replaces it has the kind and the place of a tensor."""
    if isinstance(head, QuarterSizeHead) and 0 < _beyond(head.dap) <= LARGEST_REACH:
        tail = nn.Sequential(head.classify, head.dap)
        head.classify, head.dap = FoldedTail(tail, head.in_channels, 1, _beyond(head.dap), like), nn.Identity()
    if isinstance(head, FullSizeHead) and isinstance(head.refine1, nn.Identity) and _beyond(head.dap) > 0:
        twice, once, reach = head.upsample2, head.upsample1, _reach(_beyond(head.dap))
        if isinstance(twice, LearnedUpsample) and isinstance(head.refine2, nn.Identity):
            tail, reach = nn.Sequential(twice, once, head.dap), _reach(reach)
            if reach <= LARGEST_REACH:
                head.upsample2 = FoldedTail(tail, twice.in_channels, 4, reach, like)
                head.upsample1, head.dap = nn.Identity(), nn.Identity()
        elif isinstance(once, LearnedUpsample) and reach <= LARGEST_REACH:
            head.upsample1 = FoldedTail(nn.Sequential(once, head.dap), once.in_channels, 2, reach, like)
            head.dap = nn.Identity()


def _beyond(prediction: nn.Module) -> int:
    """Returns how many pixels beyond its own a prediction reads."""
    if isinstance(prediction, DenselyAdjacentPrediction):
        return prediction.window // 2
    return prediction.convolution.kernel_size[0] // 2 if isinstance(prediction, DapControlConv) else 0


def _reach(pixels: int) -> int:
    """Returns how many positions beyond its own a transposed convolution reads for what lies so many pixels beyond."""
    return (pixels + 2) // 2  # 4 x 4, stride 2: a pixel is made of its own position and the nearest one


class FoldedTail(nn.Module):
    """A linear map from D channels to blocks of `scale` x `scale` pixels with K scores, as one convolution.

    Let f be the tail: convolutions or upsamplings by transposed ones, then densely adjacent prediction, each of which
    treats what lies beyond its own grid as zero. f is affine, and away from the border it commutes with a shift of its
    input by one position. So the scores in a position's block are a fixed affine function of the positions within
    `reach` of it: for a window of 3 behind 4 x 4 transposed convolutions of stride 2, of the 3 x 3 nearest ones.
    Two transposed convolutions of D channels and the averaging thus become one convolution from D to K * scale^2
    channels and a pixel shuffle, and no map of D channels at a larger size exists.

    In the `reach` first and last rows and columns f reads positions beyond an inner grid, which are zero there, though
    the convolution would compute something. This is also a fixed affine function, one for each distance from the sides
    and corners: for a window of 3 eight more kernels, each applied to its own positions.

    All kernels are read off f itself, in float64. Its response to zero is the bias; its response to a one in a single
    channel of a single position, minus the bias, is a column of a kernel. The grid for this is the smallest that has
    all kinds of positions.

    Args:
        tail: f; `(N, D, H, W)` to `(N, K, scale * H, scale * W)`.
        channels: D.
        scale: How many pixels a position has along each side.
        reach: How many positions around its own the scores in a position's block depend on, at least 1.
        like: A tensor of the kernels' kind and place.
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
        """Maps `(N, D, H, W)` to `(N, K, scale * H, scale * W)`, computed in float32 at least.

        Args:
            y: H and W at least `2 * reach + 1`.
        """
        with torch.autocast(y.device.type, enabled=False):
            y = y.to(torch.promote_types(y.dtype, self.weight_0_0.dtype))  # type: ignore[arg-type]
            places = [(place, self._needed(place)) for place in range(_side(self.reach))]
            rows = [
                torch.cat([self._cells(y[:, :, above, beside], row, column) for column, beside in places], dim=3)
                for row, above in places
            ]
            scores = torch.cat(rows, dim=2)
            return scores if self.scale == 1 else F.pixel_shuffle(scores, self.scale)

    def _needed(self, place: int) -> slice:
        """Returns what part of a side is read for the positions at a place of it."""
        if place < self.reach:
            return slice(0, place + self.reach + 1)
        if place == self.reach:
            return slice(None)
        return slice(place - self.reach - _side(self.reach), None)

    def _cells(self, y: Tensor, row: int, column: int) -> Tensor:
        """Computes the positions of one kind, from just the input that they need."""
        weight = self.get_buffer(f"weight_{row}_{column}")
        return F.conv2d(y, weight, self.get_buffer(f"bias_{row}_{column}"))


def _side(reach: int) -> int:
    """Returns the side of the least grid on which no position is near to two borders at once."""
    return 2 * reach + 1


@torch.no_grad()
def _probe(
    tail: nn.Module, channels: int, scale: int, reach: int, device: torch.device
) -> dict[Place, tuple[Tensor, Tensor]]:
    """Returns kernel and bias for each position of the grid; beyond the border a kernel is cut off."""
    side = _side(reach)
    positions = list(itertools.product(range(side), range(side)))
    zeros = torch.zeros(1, channels, side, side, dtype=torch.float64, device=device)
    nothing = tail(zeros)
    # Place -> its kernel's taps in order; each `(D, K * scale^2)`, the latter ordered as pixel shuffle is.
    taps: dict[Place, list[Tensor]] = {place: [] for place in positions}
    for position in positions:
        near = [place for place in positions if max(abs(place[0] - position[0]), abs(place[1] - position[1])) <= reach]
        answers: dict[Place, list[Tensor]] = {place: [] for place in near}
        for few in torch.split(torch.arange(channels), PROBED_AT_ONCE):
            impulses = zeros.repeat(len(few), 1, 1, 1)
            impulses[torch.arange(len(few)), few, position[0], position[1]] = 1
            difference = tail(impulses) - nothing
            for place in near:
                answers[place].append(difference[_block(place, scale)].flatten(1))
        for place in near:
            taps[place].append(torch.cat(answers[place]))
    return {
        place: (_kernel(place, columns, channels, reach), nothing[_block(place, scale)].flatten())
        for place, columns in taps.items()
    }


def _block(place: Place, scale: int) -> tuple[EllipsisType, slice, slice]:
    """Returns where a position's pixels are."""
    row, column = place
    return ..., slice(row * scale, (row + 1) * scale), slice(column * scale, (column + 1) * scale)


def _kernel(place: Place, taps: list[Tensor], channels: int, reach: int) -> Tensor:
    rows, columns = (_side(reach) - abs(index - reach) for index in place)
    return torch.stack(taps, dim=-1).transpose(0, 1).reshape(-1, channels, rows, columns).contiguous()


def _fold_batch_norms(model: ExFuse) -> None:
    """Merges each batch norm into the convolution that it follows; a backbone that declares no pairs stays as it is."""
    body = body_of(model.backbone)
    pairs = itertools.chain(pairs_by_name(model), model.backbone.conv_norm_pairs() or ())
    for parent, first, second in list(pairs):
        convolution, norm = getattr(parent, first), getattr(parent, second)
        dtype = convolution.weight.dtype
        merged = fuse_conv_bn_eval(convolution.double(), norm.double()).to(dtype)  # rounded once
        setattr(parent, first, merged)
        setattr(parent, second, nn.Identity())
    spared = set(body.modules()) if body.conv_norm_pairs() is None else set()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in spared:
            raise ConfigError(
                f"{name}: a batch norm without a convolution; {type(body).__name__}.conv_norm_pairs lacks it"
            )
