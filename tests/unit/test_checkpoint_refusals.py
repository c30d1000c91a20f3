"""Checkpoints that are damaged, forged or of another run are refused by name, and nothing in them is run."""

import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from exfuse.atomic_io import Digest, digest_of
from exfuse.errors import CheckpointError
from exfuse.manifest import MANIFEST, verify_folder, write_manifest
from exfuse.training.checkpoint import (
    LATEST,
    TrainingState,
    latest_checkpoint,
    save_checkpoint,
    verify_latest,
)
from exfuse.training.optim import OptimizerName
from support.checkpoints import CHECKPOINT_FILES, Training, start_training, take_step
from support.special_files import be_a_pipe, be_endless


def test_where_no_checkpoint_is_there_is_nothing_to_resume_from(trained: Training, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"latest: .*no checkpoint"):
        trained.load(folder)
    assert latest_checkpoint(folder) is None


def seal_again(folder: Path) -> None:
    """Makes the manifest and the pointer fit what lies in the latest checkpoint, as a forger would."""
    target = folder / (folder / LATEST).read_text(encoding="utf-8").split()[0]
    (target / MANIFEST).unlink()
    digest = write_manifest(target, {path.name: digest_of(path) for path in target.iterdir()})
    (folder / LATEST).write_text(f"{target.name} {digest}\n", encoding="utf-8")


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_a_missing_file_is_named(file: str, trained: Training, folder: Path) -> None:
    (trained.save(folder, 1) / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(file)}: "):
        start_training().load(folder)


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "noise", "folder"])
def test_a_damaged_file_is_refused(file: str, damage: str, trained: Training, folder: Path) -> None:
    path = trained.save(folder, 1) / file
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        noise = bytes(range(256)) * (len(content) // 256 + 1)
        damaged = {"empty": b"", "half": content[: len(content) // 2], "zeros": bytes(len(content)), "noise": noise}
        path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=str(folder)):
        start_training().load(folder)


@pytest.mark.parametrize("pointer", [b"", b"step_00000002", b"\xff\xfe", b"\n", b"x" * 5000])
def test_a_pointer_to_nothing_is_refused(pointer: bytes, trained: Training, folder: Path) -> None:
    trained.save(folder, 1)
    (folder / LATEST).write_bytes(pointer)
    with pytest.raises(CheckpointError, match=str(folder)):
        start_training().load(folder)


@pytest.mark.parametrize("state", ["[]", "null", "3", '"step"', '{"steps": 3}', '{"step": 1', "[1, 2, 3]"])
def test_a_state_that_is_none_is_refused(state: str, trained: Training, folder: Path) -> None:
    (trained.save(folder, 1) / "state.json").write_text(state, encoding="utf-8")
    seal_again(folder)
    with pytest.raises(CheckpointError, match="loaded"):
        start_training().load(folder)


def as_forged(trained: Training, folder: Path, file: str, content: bytes) -> None:
    (trained.save(folder, 1) / file).write_bytes(content)
    seal_again(folder)


@pytest.mark.parametrize(
    "change",
    [{"step": "7"}, {"step": -3}, {"step": 1.5}, {"step": True}, {"step": None}, {"best_score": math.inf},
     {"best_score": math.nan}, {"best_score": "0.5"}, {"skipped": 10.0}, {"data_sha256": 3}, {"more": 1}],
    ids=str,
)  # fmt: skip
def test_a_forged_state_is_refused(change: dict[str, Any], trained: Training, folder: Path) -> None:
    as_forged(trained, folder, "state.json", json.dumps(asdict(TrainingState(1)) | change).encode())
    with pytest.raises(CheckpointError, match=f"loaded .*{next(iter(change))}"):
        start_training().load(folder)


@pytest.mark.parametrize("change", ["one number", "longer", "another", "less"])
@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_a_forged_optimizer_state_is_refused(name: OptimizerName, change: str, folder: Path) -> None:
    training = start_training(name)
    take_step(training, 1)
    tensors = load_file(training.save(folder, 1) / "optimizer_0.safetensors")
    key = next(key for key, value in tensors.items() if value.ndim == 4)
    if change == "less":
        del tensors[key]
        tensors[f"{key}_of_another"] = torch.zeros(())  # so that it is not just the state of one parameter less
    else:
        shape = {"one number": (1,), "longer": (2, *tensors[key].shape), "another": (3, 5)}[change]
        tensors[key] = torch.zeros(shape)
    as_forged(training, folder, "optimizer_0.safetensors", save(tensors))
    with pytest.raises(CheckpointError, match="optimizer"):
        start_training(name).load(folder)


def test_a_checkpoint_of_another_network_is_refused(trained: Training, folder: Path) -> None:
    trained.save(folder, 1)
    with pytest.raises(CheckpointError, match="loaded"):
        start_training(width=12).load(folder)


@pytest.mark.parametrize("key", ["100000.exp_avg", "-100000.exp_avg", "first.exp_avg", "exp_avg"])
def test_an_optimizer_state_for_a_parameter_that_is_none_is_refused(key: str, trained: Training, folder: Path) -> None:
    path = trained.save(folder, 1) / "optimizer_0.safetensors"
    save_file(load_file(path) | {key: torch.zeros(3)}, path)
    seal_again(folder)
    with pytest.raises(CheckpointError, match="loaded"):
        start_training().load(folder)


def refuse_to_pickle(*arguments: Any, **options: Any) -> None:
    raise AssertionError("something was pickled")


def test_nothing_is_pickled(trained: Training, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pickle, torch.serialization.pickle):
        for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
            monkeypatch.setattr(module, name, refuse_to_pickle)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse_to_pickle)
    written = trained.save(folder, 1)
    start_training().load(folder)
    monkeypatch.undo()
    assert sorted(path.name for path in written.iterdir()) == sorted(CHECKPOINT_FILES)
    for path in written.glob("*.safetensors"):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in described.items() if name != "__metadata__"]
        assert 8 + length + max(ends) == len(content)  # a header and tensors, nothing else


class Trap:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(
    file: str, trained: Training, folder: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    path = trained.save(folder, 1) / file
    path.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(CheckpointError):
        start_training().load(folder)
    assert not trace.exists()


@pytest.mark.parametrize("flips", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_any_flipped_bit_is_refused_with_the_name_of_its_file(trained: Training, folder: Path, flips: int) -> None:
    target = trained.save(folder, 1)
    rng = np.random.default_rng(0)
    files = [*sorted(target.iterdir()), folder / LATEST]
    sizes = np.array([path.stat().st_size for path in files])
    other = start_training(seed=1)
    for trial in range(flips):
        # Every small file gets its share, too; by size alone the weights would get all.
        path = files[trial % len(files)] if trial % 2 else files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
        content = path.read_bytes()
        place, bit = int(rng.integers(len(content))), int(rng.integers(8))
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError) as refused:
            other.load(folder)
        named = target / MANIFEST if path.name == LATEST and str(path) not in str(refused.value) else path
        assert str(named) in str(refused.value), f"{path.name}, byte {place}, bit {bit}"
        path.write_bytes(content)
    assert other.load(folder).step == 1


def test_a_checkpoint_can_be_verified_without_a_network(trained: Training, folder: Path) -> None:
    target = trained.save(folder, 1)
    files = verify_folder(target)
    assert set(files) == set(CHECKPOINT_FILES) - {MANIFEST}
    assert all(files[name].size == (target / name).stat().st_size for name in files)
    (target / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: .*No such file"):
        verify_folder(target)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b"])
def test_a_manifest_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    write_manifest(tmp_path, {name: Digest(0, "0" * 64)})
    with pytest.raises(CheckpointError, match=r"manifest\.json: .*changed"):
        verify_folder(tmp_path)


FILES = ("latest", "manifest.json", "state.json", "model.safetensors", "ema.safetensors", "optimizer_0.safetensors")


@pytest.mark.parametrize("become", [be_a_pipe, be_endless])
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_device_in_a_files_place_is_refused_and_not_read(
    become: Callable[[Path], None], name: str, trained: Training, folder: Path
) -> None:
    checkpoint = trained.save(folder, 1)
    path = folder / name if name == LATEST else checkpoint / name
    path.unlink()
    become(path)
    for use in (trained.load, verify_latest):
        with pytest.raises(CheckpointError, match=f"{path}: .*regular file"):
            use(folder)


@pytest.mark.parametrize("become", [be_a_pipe, be_endless])
def test_a_save_over_a_pipe_or_a_device_ends(become: Callable[[Path], None], trained: Training, folder: Path) -> None:
    checkpoint = trained.save(folder, 1)
    for path in (checkpoint / "state.json", folder / LATEST):
        path.unlink()
        become(path)
        with pytest.raises(CheckpointError, match=f"{folder}/(step_00000001|latest): .*regular file"):
            trained.save(folder, 1)


def test_a_state_that_json_cannot_hold_is_not_written(trained: Training, folder: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(folder, trained.model, None, trained.optimizers, TrainingState(1, math.nan))
    assert not folder.exists()
