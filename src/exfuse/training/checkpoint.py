"""Checkpoints: a folder of safetensors and JSON that appears whole or not at all.

A checkpoint is written beside its final name, flushed to the disk, and renamed; then `latest` is moved to it, and
only then are older ones removed. Nothing is ever pickled.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from exfuse.errors import CheckpointError, brief

LATEST = "latest"


@dataclass
class TrainingState:
    """Where a run stands, beside the tensors; the samples to come follow from the step and the seed.

    Attributes:
        step: Optimizer steps taken.
        best_score: Best score on the validation split so far, 0 to 1; -1 before the first.
        best_step: The step it was measured at.
    """

    step: int = 0
    best_score: float = -1.0
    best_step: int = 0


def save_checkpoint(
    folder: Path, model: nn.Module, average: nn.Module | None, optimizers: Sequence[Optimizer], state: TrainingState
) -> Path:
    """Writes a checkpoint into a run's `checkpoints` folder and then removes the older ones.

    Args:
        folder: The `checkpoints` folder.
        model: The network being trained.
        average: Its moving average, or None.
        optimizers: Its optimizers.
        state: Where the run stands.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If it cannot be written; the previous checkpoint is untouched.
    """
    target = folder / f"step_{state.step:08d}"
    staged = folder / f".{target.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        _save_tensors(staged / "model.safetensors", model.state_dict())
        if average is not None:
            _save_tensors(staged / "average.safetensors", average.state_dict())
        for number, optimizer in enumerate(optimizers):
            _save_tensors(staged / f"optimizer_{number}.safetensors", _optimizer_tensors(optimizer))
        _write_text(staged / "state.json", json.dumps(asdict(state)))
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
        _sync_folder(folder)
        _point(folder / LATEST, target.name)
        for old in (*folder.glob("step_*"), *folder.glob(".step_*.partial")):
            if old != target:
                shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target}: the checkpoint could not be written ({brief(error)})") from error
    return target


def load_checkpoint(
    folder: Path, model: nn.Module, average: nn.Module | None, optimizers: Sequence[Optimizer]
) -> TrainingState:
    """Loads the latest checkpoint of a run into the given objects, changed in place.

    Args:
        folder: The `checkpoints` folder.
        model: A network of the run's architecture.
        average: Its moving average if the run keeps one, else None.
        optimizers: Its optimizers, with the run's groups.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: If there is no checkpoint, or it cannot be read, or belongs to another network.
    """
    try:
        source = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
        state = TrainingState(**json.loads((source / "state.json").read_text(encoding="utf-8")))
        model.load_state_dict(load_file(source / "model.safetensors"))
        if average is not None:
            average.load_state_dict(load_file(source / "average.safetensors"))
        for number, optimizer in enumerate(optimizers):
            _restore_optimizer(optimizer, load_file(source / f"optimizer_{number}.safetensors"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: nothing to resume from ({brief(error)})") from error
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: the checkpoint cannot be loaded ({brief(error)})") from error
    return state


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # The fused optimizers walk a weight and its state side by side in memory: both need the same strides.
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _point(pointer: Path, name: str) -> None:
    staged = pointer.with_name(f".{pointer.name}.partial")
    _write_text(staged, name)
    staged.replace(pointer)
    _sync_folder(pointer.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
