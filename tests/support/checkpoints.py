"""A small training run whose checkpoints are written, damaged and read."""

from pathlib import Path
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from exfuse.manifest import MANIFEST
from exfuse.models.exfuse import ExFuseOutput
from exfuse.models.registry import create_model
from exfuse.training.checkpoint import (
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)
from exfuse.training.optim import ExponentialMovingAverage, OptimizerName, build_optimizers

OPTIMIZER_NAMES = get_args(OptimizerName)


class Training(NamedTuple):
    model: nn.Module
    ema: ExponentialMovingAverage
    optimizers: tuple[Optimizer, ...]

    def save(self, folder: Path, step: int) -> Path:
        return save_checkpoint(folder, self.model, self.ema.model, self.optimizers, TrainingState(step, 0.5, step))

    def load(self, folder: Path) -> TrainingState:
        return load_checkpoint(folder, self.model, self.ema.model, self.optimizers)


class SmallNetwork(nn.Module):
    """Kernels, batch norms and biases in a backbone and a head: every kind of state, a hundredth of the tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 48, 3, stride=8, bias=False), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1)
        )
        self.head = nn.Sequential(nn.Conv2d(48, width, 1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    def forward(self, x: Tensor) -> ExFuseOutput:
        scores = self.head(self.backbone(x))
        return ExFuseOutput(scores, (scores,))


def start_training(
    name: OptimizerName = "adamw",
    channels_last: bool = False,
    seed: int = 0,
    momentum: float = 0.9,
    width: int = 8,
    real: bool = False,
) -> Training:
    """Returns a training run before its first step; with `real`, of a network that is one of ours."""
    torch.manual_seed(seed)
    model: nn.Module = SmallNetwork(width)
    if real:
        model = create_model("exfuse_tiny", num_classes=3, decoder="stride4", decoder_width=width, gcn_kernel=3)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(model, name, 0.01, 0.5, 0.1, momentum)
    return Training(model, ExponentialMovingAverage(model, 0.9), optimizers)


def take_step(training: Training, step: int) -> float:
    generator = torch.Generator().manual_seed(step)
    output = training.model.train()(torch.randn((2, 3, 64, 64), generator=generator))
    loss = output.logits.square().mean() + (output.auxiliary_logits[0] - 1).square().mean()
    loss.backward()
    for optimizer in training.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    training.ema.update(training.model, step)
    return float(loss.detach())


def everything_in(training: Training) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in training.ema.model.state_dict().items()}
    for number, optimizer in enumerate(training.optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            kept = {name: value for name, value in values.items() if value is not None}
            tensors |= {f"optimizer {number}.{index}.{name}": value for name, value in kept.items()}
    return {name: value.detach().clone() for name, value in tensors.items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.fixture(scope="module")
def trained() -> Training:
    training = start_training()
    take_step(training, 0)
    return training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


CHECKPOINT_FILES = ["model.safetensors", "ema.safetensors", "optimizer_0.safetensors", "state.json", MANIFEST]
