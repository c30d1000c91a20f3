"""Muon: momentum whose update is orthogonalised, for the weights that are matrices or convolution kernels."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Coefficients of the quintic iteration and the number of rounds (Jordan et al., 2024): singular values end near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class Muon(Optimizer):
    """Steps along the nearest semi-orthogonal matrix to the (Nesterov) momentum (Jordan et al., "Muon", 2024).

    A kernel `(D, C, h, w)` counts as the matrix `(D, C * h * w)`. The update is scaled by `0.2 * sqrt(max(rows,
    columns))`, so that its entries are as large as AdamW's and the same learning rates fit (Liu et al., "Muon is
    Scalable for LLM Training", 2025, section 2.2). Weight decay is decoupled.

    A kernel of g groups is g matrices `(D / g, C / g * h * w)`, each a map of its own, that share no input and no
    output. As one matrix they are block-diagonal, the norm of which (the largest singular value) is that of its largest
    block, so the steepest step under it takes each block by itself. A depthwise kernel's blocks are single rows, whose
    nearest semi-orthogonal matrix is the row of length 1: each filter steps in its own direction, all equally far.

    Args:
        params: Weights of two or more dimensions, or groups of them with `lr`, `weight_decay` and `matrices`: how many
            each weight consists of, in their order; without it one.
        lr: Learning rate of groups that have none of their own.
        momentum: Share of the momentum that is kept at each step.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "matrices": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes a step with the gradients at hand; weights without one stay."""
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
    """Returns matrices with the same singular vectors and singular values brought near 1 (about 0.7 to 1.15).

    The Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X multiplies X by polynomials of XX' only, so all rounds
    are done on that small square matrix and X itself is multiplied once.

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
