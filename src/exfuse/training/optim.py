"""Optimizers, the learning rate schedule, and the moving average of the weights."""

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from exfuse.training.muon import Muon

OptimizerName = Literal["adamw", "sgd", "muon"]


def build_optimizers(
    model: nn.Module,
    name: OptimizerName,
    learning_rate: float,
    backbone_lr_scale: float,
    weight_decay: float,
    momentum: float,
) -> tuple[Optimizer, ...]:
    """Groups the parameters and builds their optimizers.

    Biases and normalisation parameters have no weight decay. Each group stores its peak learning rate as `peak_lr`.

    Args:
        model: The network, with a `backbone`.
        name: "adamw"; "sgd" with momentum; or "muon" for the kernels of all convolutions and AdamW for the rest
            (transposed convolutions, biases, normalisation).
        learning_rate: Peak learning rate of the decoder.
        backbone_lr_scale: Factor on it for the backbone.
        weight_decay: Weight decay of parameters with two or more dimensions.
        momentum: Momentum of "sgd" and "muon".

    Returns:
        One optimizer, or two for "muon"; each parameter is in exactly one of them.
    """
    backbone = {id(parameter) for parameter in model.get_submodule("backbone").parameters()}

    def grouped(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        groups = []
        for in_backbone, decayed in itertools.product((True, False), repeat=2):
            chosen = [p for p in parameters if (id(p) in backbone) == in_backbone and (p.ndim > 1) == decayed]
            rate = learning_rate * (backbone_lr_scale if in_backbone else 1.0)
            decay = weight_decay if decayed else 0.0
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak_lr": rate, "weight_decay": decay})
        return groups

    everything = list(model.parameters())
    if name == "adamw":
        return (AdamW(grouped(everything), fused=True),)
    if name == "sgd":
        return (SGD(grouped(everything), momentum=momentum, fused=True),)
    maps = {id(module.weight): module.groups for module in model.modules() if isinstance(module, nn.Conv2d)}
    kernels = grouped([parameter for parameter in everything if id(parameter) in maps])
    for group in kernels:
        group["matrices"] = [maps[id(parameter)] for parameter in group["params"]]
    rest = [parameter for parameter in everything if id(parameter) not in maps]
    return Muon(kernels, momentum=momentum), AdamW(grouped(rest), fused=True)


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Literal["polynomial", "cosine"]
) -> float:
    """Returns the factor of the peak learning rate at a step, 0 to 1.

    Args:
        step: The next step, counted from 0.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of linear increase at the start.
        schedule: "polynomial" decays as (1 - t) ** 0.9, "cosine" as half a cosine; t is the fraction of the steps after
            the warm-up that are done.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "polynomial":
        return float((1 - progress) ** 0.9)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Sets each group to `factor` times its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


class ExponentialMovingAverage:
    """A second network with the exponential moving average of the weights and batch-norm statistics.

    At step n the average moves by `1 - min(decay, (1 + n) / (10 + n))` towards the network, so that early weights are
    soon forgotten.

    Args:
        model: The network to average.
        decay: Fraction of the average that is kept at each step, once n is large.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average after the optimizer step number `step`, counted from 0."""
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
