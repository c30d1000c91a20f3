"""What is done to a training run from within: interrupted, watched, spoiled."""

import itertools
import math
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from exfuse.models.exfuse import ExFuse
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.training import segmentation
from exfuse.training.log import RunLog
from exfuse.training.signals import Interrupted


def do_after_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Has `action` done in the loop right after the given step of a fresh run."""
    advance, steps = RunLog.advance, itertools.count(1)

    def advance_and_act(log: RunLog, status: str) -> None:
        advance(log, status)
        if next(steps) == step:
            action()

    monkeypatch.setattr(RunLog, "advance", advance_and_act)


def keep_networks(monkeypatch: pytest.MonkeyPatch) -> list[ExFuse]:
    """Returns a list that fills with each network that is built, to be looked at while and after it is trained."""
    build, networks = segmentation.build_model, []

    def build_and_keep(info: ModelMetadata) -> ExFuse:
        networks.append(build(info))
        return networks[-1]

    monkeypatch.setattr(segmentation, "build_model", build_and_keep)
    return networks


def stopped_after(step: int) -> pytest.RaisesExc[Interrupted]:
    """Expects the block to be interrupted with this step as the last that was saved; 0 is none."""
    return pytest.raises(Interrupted, check=lambda stop: stop.step == step)


def press_control_c() -> None:
    signal.raise_signal(signal.SIGINT)


def spoil_gradients(patch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Puts one infinity into the gradient of the given steps, counted from 0; their loss stays finite."""
    total_norm, calls = torch.nn.utils.get_total_norm, itertools.count()

    def spoil_and_measure(gradients: list[Tensor]) -> Tensor:
        if next(calls) in steps:
            gradients[7].view(-1)[3] = math.inf
        return total_norm(gradients)

    patch.setattr(torch.nn.utils, "get_total_norm", spoil_and_measure)
