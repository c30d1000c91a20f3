"""Muon: momentum with orthogonalised updates, for weight matrices and convolution kernels."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Coefficients and number of rounds of the quintic iteration (Jordan et al., 2024); singular values end up near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class Muon(Optimizer):
    """Steps along the semi-orthogonal matrix nearest to the Nesterov momentum (Jordan et al., "Muon", 2024).

    A kernel `(D, C, h, w)` is treated as the matrix `(D, C * h * w)`. The update is scaled by `0.2 * sqrt(max(rows,
    columns))`, so that its entries are about as large as AdamW's and the same learning rates can be used (Liu et al.,
    "Muon is Scalable for LLM Training", 2025, section 2.2). Weight decay is decoupled.

    A kernel with g groups is g independent matrices `(D / g, C / g * h * w)`, which share no input and no output.
    Written as one matrix they are block-diagonal. Its spectral norm is that of the largest block, so steepest descent
    under this norm treats each block separately. The blocks of a depthwise kernel are single rows, and the
    semi-orthogonal matrix nearest to a row is the row scaled to length 1: each filter moves in its own direction, all
    by the same distance.

    Args:
        params: Weights of two or more dimensions, or groups of them with `lr`, `weight_decay` and `matrices`: the
            number of matrices (convolution groups) in each weight, in order; 1 if omitted.
        lr: Learning rate of groups without `lr`.
        momentum: Fraction of the momentum that is kept at each step.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "matrices": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all weights that have a gradient."""
        for group in self.param_groups:
            counts = group["matrices"] or [1] * len(group["params"])
            for weight, count in zip(group["params"], counts, strict=True):
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                direction = orthogonalize(ahead.unflatten(0, (count, -1)) if count > 1 else ahead)
                scale = 0.2 * max(direction.shape[-2:]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction.reshape(weight.shape), alpha=-group["lr"] * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Returns matrices with the same singular vectors and with singular values near 1 (about 0.7 to 1.15).

    The Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X multiplies X only by polynomials in XX'. All rounds are
    therefore computed on this small square matrix, and X itself is multiplied once at the end.

    Args:
        matrices: float `(..., rows, columns)`.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT).mT
    matrices = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = matrices @ matrices.mT
    scaled_identity = _A * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = scaled_identity + _B * gram + _C * gram @ gram
    for _ in range(_ROUNDS - 1):
        current = factor @ gram @ factor
        factor = (scaled_identity + _B * current + _C * current @ current) @ factor
    return factor @ matrices
