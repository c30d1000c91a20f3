"""Checkpoints: a folder of safetensors and JSON that appears whole or not at all.

A checkpoint is written beside its final name, each file flushed to the disk, a manifest with their hashes last, and
then renamed; `latest` is moved to it, and only then are older ones removed. Nothing is ever pickled.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from exfuse.atomic_io import (
    Digest,
    atomic_folder,
    atomic_write_text,
    describe_os_error,
    read_file,
    remove_partials,
    write_file,
)
from exfuse.errors import CheckpointError, brief
from exfuse.manifest import verify_folder, write_manifest
from exfuse.training.muon import Muon

LATEST = "latest"
STATE_FILE = "state.json"
MAX_STATE = 4096  # bytes of either
_NAME = r"step_(\d{8,})(_scored)?"
_POINTER = re.compile(rf"({_NAME}) ([0-9a-f]{{64}})\n")
# What saves leave, and what those that were cut off do.
_LEFT = re.compile(rf"{_NAME}|\.{_NAME}\.(partial|previous)-[0-9a-f]{{16}}")
# Of each parameter that was stepped; "step" is a single number, the others are of the parameter's shape.
_STATE: dict[type[Optimizer], frozenset[str]] = {
    AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    SGD: frozenset({"momentum_buffer"}),
    Muon: frozenset({"momentum"}),
}


@dataclass
class TrainingState:
    """Where a run stands, beside the tensors; the samples to come follow from the step and the seed.

    Attributes:
        step: Optimizer steps taken, skipped ones included.
        best_score: Best score on the validation split so far, 0 to 1; -1 before the first.
        best_step: The step it was measured at.
        evaluated_step: The last step at which the network was scored; a run that was stopped while scoring repeats it.
        skipped: How many steps in a row, the last one included, were left out because a number was not finite.
        data_sha256: Of the data that the run is trained and scored on.
    """

    step: int = 0
    best_score: float = -1.0
    best_step: int = 0
    evaluated_step: int = 0
    skipped: int = 0
    data_sha256: str = ""


def save_checkpoint(
    folder: Path, model: nn.Module, ema: nn.Module | None, optimizers: Sequence[Optimizer], state: TrainingState
) -> Path:
    """Writes a checkpoint into a run's `checkpoints` folder and then removes the older ones.

    Args:
        folder: The `checkpoints` folder.
        model: The network being trained.
        ema: Its moving average, or None.
        optimizers: Its optimizers.
        state: Where the run stands.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If it cannot be written; the previous checkpoint is untouched.
    """
    target, content = folder / f"step_{state.step:08d}", json.dumps(asdict(state), allow_nan=False).encode()
    try:
        if (folder / LATEST).exists() and _read_pointer(folder)[0] == target:
            if read_file(target / STATE_FILE, MAX_STATE) == content:
                _remove_all_but(target)  # which a kill may have kept that save from
                return target
            target = folder / f"{target.name}_scored"  # the step was saved when its scoring was cut off
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(target) as staged:
            files: dict[str, Digest] = {}
            for name, tensors in _tensors_by_file(model, ema, optimizers):
                files[name] = write_file(staged / name, _serialize(tensors))
            files[STATE_FILE] = write_file(staged / STATE_FILE, content)
            digest = write_manifest(staged, files)
        atomic_write_text(folder / LATEST, f"{target.name} {digest}\n")
    except OSError as error:
        raise CheckpointError(
            f"{target}: the checkpoint could not be written ({describe_os_error(error, folder)})"
        ) from error
    _remove_all_but(target)
    return target


def load_checkpoint(
    folder: Path, model: nn.Module, ema: nn.Module | None, optimizers: Sequence[Optimizer]
) -> TrainingState:
    """Loads the latest checkpoint of a run into the given objects, changed in place, after checking every byte of it.

    Args:
        folder: The `checkpoints` folder.
        model: A network of the run's architecture.
        ema: Its moving average if the run keeps one, else None.
        optimizers: Its optimizers, with the run's groups.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged, or belongs to another network.
    """
    source, digest = _read_pointer(folder)
    verify_folder(source, digest)
    try:
        state = _read_state(source / STATE_FILE)
        model.load_state_dict(load_file(source / "model.safetensors"))
        if ema is not None:
            ema.load_state_dict(load_file(source / "ema.safetensors"))
        for number, optimizer in enumerate(optimizers):
            _restore_optimizer(optimizer, load_file(source / f"optimizer_{number}.safetensors"))
    except (OSError, SafetensorError, ArithmeticError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{source}: the checkpoint cannot be loaded ({brief(error)})") from error
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint that a run goes on from, or None if it has none yet.

    Args:
        folder: The `checkpoints` folder.

    Raises:
        CheckpointError: If `latest` is damaged.
    """
    return _read_pointer(folder)[0] if has_checkpoint(folder) else None


def has_checkpoint(folder: Path) -> bool:
    """Returns whether a run has a checkpoint; also if `latest`, which names it, is gone."""
    return (folder / LATEST).exists() or bool(_newest_first(folder))


def verify_latest(folder: Path) -> tuple[Path, dict[str, Digest]]:
    """Checks the latest checkpoint of a `checkpoints` folder to the bit.

    Returns:
        The checkpoint and its files.

    Raises:
        CheckpointError: If there is none, or a file is missing or changed.
    """
    source, digest = _read_pointer(folder)
    return source, verify_folder(source, digest)


def _remove_all_but(target: Path) -> None:
    """Removes the other checkpoints of a folder, and what saves that were cut off have left."""
    remove_partials(target.parent)
    for old in target.parent.iterdir():
        if old != target and _LEFT.fullmatch(old.name) and old.is_dir():
            try:
                shutil.rmtree(old)
            except OSError as error:
                why = describe_os_error(error, target.parent)
                raise CheckpointError(f"{old}: cannot be removed, now that {target} is written ({why})") from error


def _read_pointer(folder: Path) -> tuple[Path, str | None]:
    """Returns the latest checkpoint and its manifest's hash, which is not known where `latest` is gone."""
    path = folder / LATEST
    try:
        found = _POINTER.fullmatch(read_file(path, MAX_STATE).decode())
    except FileNotFoundError as error:
        # A checkpoint gets its name when it is whole, and the pointer follows: the first save may end between the two.
        if found_without := _newest_first(folder):
            return found_without[0], None
        raise CheckpointError(f"{path}: there is no checkpoint") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not readable ({brief(error)})") from error
    if found is None:
        raise CheckpointError(f"{path}: changed since it was written; it does not name a checkpoint")
    if not (folder / found[1]).is_dir():
        raise CheckpointError(f"{path}: names {found[1]}, which is not there")
    return folder / found[1], found[4]


def _newest_first(folder: Path) -> list[Path]:
    """Returns all checkpoints of a folder."""
    names = re.compile(_NAME)
    found = [(names.fullmatch(path.name), path) for path in folder.glob("step_*") if path.is_dir()]
    by_step = [(int(match[1]), match[2] or "", path) for match, path in found if match is not None]
    return [path for _, _, path in sorted(by_step, reverse=True)]


def _read_state(path: Path) -> TrainingState:
    state = TrainingState(**json.loads(read_file(path, MAX_STATE)))
    counts = (state.step, state.best_step, state.evaluated_step, state.skipped)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{path.name}: a count that is none")
    if type(state.best_score) not in (int, float) or not -1 <= state.best_score <= 1:
        raise ValueError(f"{path.name}: best_score {state.best_score!r} is no score")
    if not isinstance(state.data_sha256, str):
        raise TypeError(f"{path.name}: data_sha256 is no text")
    return state


def _tensors_by_file(
    model: nn.Module, ema: nn.Module | None, optimizers: Sequence[Optimizer]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield "model.safetensors", model.state_dict()
    if ema is not None:
        yield "ema.safetensors", ema.state_dict()
    for number, optimizer in enumerate(optimizers):
        yield f"optimizer_{number}.safetensors", _optimizer_tensors(optimizer)


def _serialize(tensors: dict[str, Tensor]) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    numbered = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        index = int(number)
        parameter = numbered[index]
        # The fused optimizers walk a weight and its state side by side in memory, and look at neither size nor strides.
        if value.shape != (() if name == "step" else parameter.shape):
            raise ValueError(f"the optimizer's {key} has the shape {tuple(value.shape)}")
        if name != "step":
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(index, {})[name] = value
    for index, values in state.items():
        if values.keys() != _STATE.get(type(optimizer), values.keys()):
            raise ValueError(f"the optimizer's state of parameter {index} is {', '.join(values)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
