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

from exfuse.layers import BilinearDeconvolution, DenselyAdjacentPrediction
from exfuse.models.exfuse import ExFuse, FullSizeHead, QuarterSizeHead

CELLS = 5  # side of the grid on which a tail is probed; the middle cell is two away from every border
FIRST, MIDDLE, LAST = 0, CELLS // 2, CELLS - 1
PLACES = (FIRST, MIDDLE, LAST)
WINDOW = 3  # a larger one reaches two cells
PROBED_AT_ONCE = 64  # channels, which bounds the memory


def fold(model: ExFuse) -> ExFuse:
    """Returns the inference form of a network: equal labels, logits equal but for rounding, in eval only.

    Args:
        model: Left as it is.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_batch_norms(folded)
    _fold_head(folded.head)
    return folded


def _fold_head(head: nn.Module) -> None:
    """Replaces the linear end of a head, where it has one that reaches no further than the next cell."""
    dap = head.dap
    if not isinstance(dap, DenselyAdjacentPrediction) or dap.window != WINDOW:
        return
    if isinstance(head, QuarterSizeHead) and isinstance(head.classify, nn.Conv2d):
        head.classify, head.dap = (
            FoldedTail(nn.Sequential(head.classify, dap), head.classify.in_channels, 1),
            nn.Identity(),
        )
    if isinstance(head, FullSizeHead):
        twice, once = head.upsample2, head.upsample1
        if isinstance(twice, BilinearDeconvolution) and isinstance(head.refine2, nn.Identity):
            head.upsample2 = FoldedTail(nn.Sequential(twice, once, dap), twice.in_channels, 4)
            head.upsample1, head.dap = nn.Identity(), nn.Identity()
        elif isinstance(once, BilinearDeconvolution):
            head.upsample1 = FoldedTail(nn.Sequential(once, dap), once.in_channels, 2)
            head.dap = nn.Identity()


class FoldedTail(nn.Module):
    """A linear map from D channels to blocks of `scale` x `scale` pixels with K scores, as one 3 x 3 convolution.

    Let f be the tail: upsamplings by transposed convolutions, then densely adjacent prediction, each of which takes
    what lies beyond its own grid for zero. f is affine, and away from the border it commutes with a shift by one cell
    of its input, so the scores in a cell's block are a fixed affine function of the cells around it: of the 3 x 3
    nearest, since 4 x 4 transposed convolutions of stride 2 and a window of 3 reach less than one cell further. Two
    transposed convolutions of D channels and the averaging thus become one convolution from D to K * scale^2 channels
    and a pixel shuffle, and no map of D channels at a larger size exists.

    In the first and the last row and column of cells some of what f would need lies beyond an inner grid and is
    zero there, though the convolution would compute something. That, too, is a fixed affine function for each of
    the four sides and four corners: eight more kernels, applied to the cells they are for.

    All nine kernels are read off f itself, in float64: its answer to zero is the bias, and its answer to a one in a
    single channel of a single cell of a 5 x 5 grid, less that, is a column of the kernel.

    Args:
        tail: f; `(N, D, H, W)` to `(N, K, scale * H, scale * W)`.
        channels: D.
        scale: How many pixels a cell has along each side.
    """

    def __init__(self, tail: nn.Module, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        exact = copy.deepcopy(tail).double()
        dtype = next(tail.parameters()).dtype
        for (row, column), (weight, bias) in _probe(exact, channels, scale).items():
            self.register_buffer(f"weight_{row}_{column}", weight.to(dtype))
            self.register_buffer(f"bias_{row}_{column}", bias.to(dtype))

    def forward(self, y: Tensor) -> Tensor:
        """Maps `(N, D, H, W)`, H and W at least 3, to `(N, K, scale * H, scale * W)`, computed in float32 at least."""
        places = ((slice(0, 2), FIRST), (slice(None), MIDDLE), (slice(-2, None), LAST))
        with torch.autocast(y.device.type, enabled=False):
            y = y.to(torch.promote_types(y.dtype, self.get_buffer(f"weight_{MIDDLE}_{MIDDLE}").dtype))
            rows = [
                torch.cat([self._cells(y[:, :, above, beside], row, column) for beside, column in places], dim=3)
                for above, row in places
            ]
            return F.pixel_shuffle(torch.cat(rows, dim=2), self.scale)

    def _cells(self, y: Tensor, row: int, column: int) -> Tensor:
        """Computes the cells of one of the nine kinds, from just the input that they need."""
        weight = self.get_buffer(f"weight_{row}_{column}")
        return F.conv2d(y, weight, self.get_buffer(f"bias_{row}_{column}"))


@torch.no_grad()
def _probe(tail: nn.Module, channels: int, scale: int) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Returns kernel and bias for the cell at each place of the grid; beyond the border a kernel is cut off."""
    zeros = torch.zeros(1, channels, CELLS, CELLS, dtype=torch.float64, device=next(tail.parameters()).device)
    nothing = tail(zeros)
    # Place -> its kernel's taps in order; each `(D, K * scale^2)`, the latter ordered as pixel shuffle is.
    taps: dict[tuple[int, int], list[Tensor]] = {(row, column): [] for row in PLACES for column in PLACES}
    for cell in itertools.product(range(CELLS), repeat=2):
        near = [place for place in taps if max(abs(place[0] - cell[0]), abs(place[1] - cell[1])) <= 1]
        answers: dict[tuple[int, int], list[Tensor]] = {place: [] for place in near}
        for start in range(0, channels, PROBED_AT_ONCE):
            few = list(range(start, min(channels, start + PROBED_AT_ONCE)))
            impulses = zeros.repeat(len(few), 1, 1, 1)
            impulses[list(range(len(few))), few, cell[0], cell[1]] = 1
            difference = tail(impulses) - nothing
            for place in near:
                answers[place].append(difference[_block(place, scale)].flatten(1))
        for place in near:
            taps[place].append(torch.cat(answers[place]))
    return {
        place: (_kernel(place, columns, channels), nothing[_block(place, scale)].flatten())
        for place, columns in taps.items()
    }


def _block(place: tuple[int, int], scale: int) -> tuple[EllipsisType, slice, slice]:
    """Returns where a cell's pixels are."""
    row, column = place
    return ..., slice(row * scale, (row + 1) * scale), slice(column * scale, (column + 1) * scale)


def _kernel(place: tuple[int, int], taps: list[Tensor], channels: int) -> Tensor:
    rows, columns = (min(CELLS, index + 2) - max(0, index - 1) for index in place)
    return torch.stack(taps, dim=-1).transpose(0, 1).reshape(-1, channels, rows, columns).contiguous()


def _fold_batch_norms(module: nn.Module) -> None:
    """Merges each batch norm into the convolution it follows, found by the names that all our modules use."""
    for child in module.children():
        _fold_batch_norms(child)
    if isinstance(module, nn.Sequential):
        pairs = [(str(index), str(index + 1)) for index in range(len(module) - 1)]
    else:
        pairs = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)]
    for first, second in pairs:
        convolution, norm = getattr(module, first, None), getattr(module, second, None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            dtype = convolution.weight.dtype
            merged = fuse_conv_bn_eval(convolution.double(), norm.double()).to(dtype)  # rounded once
            setattr(module, first, merged)
            setattr(module, second, nn.Identity())
