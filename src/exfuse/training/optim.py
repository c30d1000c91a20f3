"""The optimizer, the learning rate as a function of the step, and the moving average of the weights."""

import copy
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from exfuse.models.exfuse import ExFuse


def build_optimizer(
    model: ExFuse,
    name: Literal["adamw", "sgd"],
    learning_rate: float,
    backbone_factor: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """Groups the parameters and builds the optimizer.

    Biases and normalisation parameters are not decayed. Each group keeps its learning rate at full strength as
    `peak_lr`.

    Args:
        model: The network.
        name: "adamw", or "sgd" with momentum.
        learning_rate: Peak learning rate of the decoder.
        backbone_factor: The backbone's learning rate as a share of it.
        weight_decay: For weights of two or more dimensions.
        momentum: SGD's.
    """
    backbone = {id(parameter) for parameter in model.backbone.parameters()}  # type: ignore[attr-defined]
    groups = []
    for in_backbone in (True, False):
        for decayed in (True, False):
            parameters = [
                parameter
                for parameter in model.parameters()
                if (id(parameter) in backbone) == in_backbone and (parameter.ndim > 1) == decayed
            ]
            rate = learning_rate * (backbone_factor if in_backbone else 1.0)
            decay = weight_decay if decayed else 0.0
            groups.append({"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    if name == "adamw":
        return AdamW(groups, fused=True)
    return SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Literal["polynomial", "cosine"]
) -> float:
    """Returns the share of the peak learning rate at a step, 0 to 1.

    Args:
        step: The step about to be taken, from 0.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of linear growth at the start.
        schedule: "polynomial" falls as (1 - t) ** 0.9, "cosine" as half a cosine; t is the share of the steps after
            the warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "polynomial":
        return float((1 - progress) ** 0.9)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Sets each group to `factor` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class ExponentialMovingAverage:
    """A second network whose weights and batch-norm statistics trail those being trained.

    At step n the average moves by `1 - min(decay, (1 + n) / (10 + n))` towards the network, so that early weights are
    soon forgotten.

    Args:
        model: The network to follow.
        decay: Share of the average that is kept at each step, once warmed up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average after the optimizer's step number `step`, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, weight)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
