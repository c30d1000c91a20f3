"""Checkpoints: folders of safetensors and JSON, written atomically.

A checkpoint is written under a temporary name; each file is flushed to disk, the manifest with their hashes last. The
folder is then renamed, `latest` is moved to it, and only then are older checkpoints removed. Nothing is pickled.
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
MAX_STATE = 4096  # bytes of `latest` and of `state.json`
_NAME = r"step_(\d{8,})(_scored)?"
_POINTER = re.compile(rf"({_NAME}) ([0-9a-f]{{64}})\n")
# Names of finished checkpoints and of the remains of interrupted saves.
_REMOVABLE = re.compile(rf"{_NAME}|\.{_NAME}\.(partial|previous)-[0-9a-f]{{16}}")
# Optimizer state of each updated parameter; "step" is a scalar, the other tensors have the parameter's shape.
_STATE: dict[type[Optimizer], frozenset[str]] = {
    AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    SGD: frozenset({"momentum_buffer"}),
    Muon: frozenset({"momentum"}),
}


@dataclass
class TrainingState:
    """The state of a run besides its tensors; the remaining samples follow from the step and the seed.

    Attributes:
        step: Optimizer steps taken, including skipped ones.
        best_score: Best score on the validation split so far, 0 to 1; -1 before the first evaluation.
        best_step: The step with the best score.
        evaluated_step: The last evaluated step; an interrupted evaluation is repeated.
        skipped: Number of consecutive steps, up to the current one, skipped because of a non-finite loss or gradient.
        data_sha256: Fingerprint of the training and validation data.
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
        state: The state of the run.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If it cannot be written; the previous checkpoint is kept.
    """
    target, content = folder / f"step_{state.step:08d}", json.dumps(asdict(state), allow_nan=False).encode()
    try:
        if (folder / LATEST).exists() and _read_pointer(folder)[0] == target:
            if read_file(target / STATE_FILE, MAX_STATE) == content:
                _remove_all_but(target)  # the earlier save may have been killed before its cleanup
                return target
            target = folder / f"{target.name}_scored"  # the step was saved before its evaluation was interrupted
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
    """Verifies the hashes of a run's latest checkpoint and loads it into the given objects, in place.

    Args:
        folder: The `checkpoints` folder.
        model: A network of the run's architecture.
        ema: Its moving average if the run has one, else None.
        optimizers: Its optimizers, with the run's parameter groups.

    Returns:
        The state of the run.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or of another network.
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
    """Returns the checkpoint from which a run continues, or None if it has none yet.

    Args:
        folder: The `checkpoints` folder.

    Raises:
        CheckpointError: If `latest` is damaged.
    """
    return _read_pointer(folder)[0] if has_checkpoint(folder) else None


def has_checkpoint(folder: Path) -> bool:
    """Returns whether a run has a checkpoint, even if the file `latest` is missing."""
    return (folder / LATEST).exists() or bool(_newest_first(folder))


def verify_latest(folder: Path) -> tuple[Path, dict[str, Digest]]:
    """Verifies the hashes of the latest checkpoint in a `checkpoints` folder.

    Returns:
        The checkpoint's folder and the digests of its files, by name.

    Raises:
        CheckpointError: If there is no checkpoint, or a file is missing or was changed.
    """
    source, digest = _read_pointer(folder)
    return source, verify_folder(source, digest)


def _remove_all_but(target: Path) -> None:
    """Removes all other checkpoints of a folder, and the remains of interrupted saves."""
    remove_partials(target.parent)
    for old in target.parent.iterdir():
        if old != target and _REMOVABLE.fullmatch(old.name) and old.is_dir():
            try:
                shutil.rmtree(old)
            except OSError as error:
                reason = describe_os_error(error, target.parent)
                raise CheckpointError(
                    f"{old}: this older checkpoint cannot be removed ({reason}); {target} is written and complete"
                ) from error


def _read_pointer(folder: Path) -> tuple[Path, str | None]:
    """Returns the latest checkpoint and the hash of its manifest, or None for the hash if `latest` is missing."""
    path = folder / LATEST
    try:
        found = _POINTER.fullmatch(read_file(path, MAX_STATE).decode())
    except FileNotFoundError as error:
        # `latest` is written after the checkpoint is complete and renamed; the first save may be killed in between.
        if complete := _newest_first(folder):
            return complete[0], None
        raise CheckpointError(f"{path}: no checkpoint found") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not readable ({brief(error)})") from error
    if found is None:
        raise CheckpointError(f"{path}: changed since it was written; it does not name a checkpoint")
    if not (folder / found[1]).is_dir():
        raise CheckpointError(f"{path}: names the checkpoint {found[1]}, which is missing")
    return folder / found[1], found[4]


def _newest_first(folder: Path) -> list[Path]:
    """Returns all complete checkpoints of a folder, newest first."""
    names = re.compile(_NAME)
    found = [(names.fullmatch(path.name), path) for path in folder.glob("step_*") if path.is_dir()]
    by_step = [(int(match[1]), match[2] or "", path) for match, path in found if match is not None]
    return [path for _, _, path in sorted(by_step, reverse=True)]


def _read_state(path: Path) -> TrainingState:
    state = TrainingState(**json.loads(read_file(path, MAX_STATE)))
    counts = (state.step, state.best_step, state.evaluated_step, state.skipped)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{path.name}: step, best_step, evaluated_step and skipped must be 0 or more, got {counts}")
    if type(state.best_score) not in (int, float) or not -1 <= state.best_score <= 1:
        raise ValueError(f"{path.name}: best_score must be -1 to 1, got {state.best_score!r}")
    if not isinstance(state.data_sha256, str):
        raise TypeError(f"{path.name}: data_sha256 must be a string, got {state.data_sha256!r}")
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
        # The fused optimizers traverse a weight and its state in memory order, without checking sizes or strides.
        if value.shape != (() if name == "step" else parameter.shape):
            raise ValueError(f"optimizer state {key} has the wrong shape {tuple(value.shape)}")
        if name != "step":
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(index, {})[name] = value
    for index, values in state.items():
        if values.keys() != _STATE.get(type(optimizer), values.keys()):
            raise ValueError(f"optimizer state of parameter {index} has unexpected entries: {', '.join(values)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
