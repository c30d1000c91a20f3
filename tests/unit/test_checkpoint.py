"""Checkpoints: what is restored, what survives a crash, what is refused."""

import copy
import errno
import hashlib
import itertools
import json
import math
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.optim import Optimizer

from exfuse import manifest
from exfuse.atomic_io import Digest, atomic_folder, digest_of, write_file
from exfuse.errors import CheckpointError
from exfuse.manifest import MANIFEST, verify_folder, write_manifest
from exfuse.models.exfuse import ExFuse
from exfuse.models.registry import create_model
from exfuse.training import checkpoint
from exfuse.training.checkpoint import (
    LATEST,
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    verify_latest,
)
from exfuse.training.optim import ExponentialMovingAverage, OptimizerName, build_optimizers
from support.special_files import be_a_pipe, be_endless

OPTIMIZER_NAMES = get_args(OptimizerName)


class Training(NamedTuple):
    model: ExFuse
    ema: ExponentialMovingAverage
    optimizers: tuple[Optimizer, ...]

    def save(self, folder: Path, step: int) -> Path:
        return save_checkpoint(folder, self.model, self.ema.model, self.optimizers, TrainingState(step, 0.5, step))

    def load(self, folder: Path) -> TrainingState:
        return load_checkpoint(folder, self.model, self.ema.model, self.optimizers)


def start_training(
    name: OptimizerName = "adamw", channels_last: bool = False, seed: int = 0, momentum: float = 0.9, width: int = 8
) -> Training:
    torch.manual_seed(seed)
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


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("name", "momentum"), [*((name, 0.9) for name in OPTIMIZER_NAMES), ("sgd", 0.0)], ids=lambda value: str(value)
)
def test_after_a_round_trip_the_next_step_is_bit_equal(
    name: OptimizerName, momentum: float, channels_last: bool, folder: Path
) -> None:
    going_on = start_training(name, channels_last, seed=0, momentum=momentum)
    for step in range(2):
        take_step(going_on, step)
    going_on.save(folder, 2)
    saved = everything_in(going_on)

    resumed = start_training(name, channels_last, seed=1, momentum=momentum)
    assert differing(resumed.model.state_dict(), going_on.model.state_dict()) != []  # it starts elsewhere
    assert resumed.load(folder) == TrainingState(2, 0.5, 2)
    assert differing(everything_in(resumed), saved) == []

    for step in range(2, 4):
        assert take_step(going_on, step) == take_step(resumed, step)
    assert differing(everything_in(resumed), everything_in(going_on)) == []
    assert differing(everything_in(resumed), saved) != []
    strides = [parameter.stride() for parameter in going_on.model.parameters()]
    assert [parameter.stride() for parameter in resumed.model.parameters()] == strides


def test_a_run_that_has_moved_on_goes_back_to_what_was_saved(folder: Path) -> None:
    training = start_training()
    take_step(training, 0)
    training.save(folder, 1)
    saved = everything_in(training)
    take_step(training, 1)
    assert training.load(folder).step == 1
    assert differing(everything_in(training), saved) == []


def test_learning_rates_are_those_of_the_run_and_not_of_the_file(trained: Training, folder: Path) -> None:
    trained.save(folder, 1)
    other = start_training()
    (adamw,) = other.optimizers
    for group in adamw.param_groups:
        group["lr"] = group["peak_lr"] = 0.123
    other.load(folder)
    assert {(group["lr"], group["peak_lr"]) for group in adamw.param_groups} == {(0.123, 0.123)}


def test_without_a_moving_average_none_is_written_or_wanted(trained: Training, folder: Path) -> None:
    written = save_checkpoint(folder, trained.model, None, trained.optimizers, TrainingState(3))
    assert not (written / "ema.safetensors").exists()
    other = start_training(seed=5)
    untouched = copy.deepcopy(other.ema.model.state_dict())
    assert load_checkpoint(folder, other.model, None, other.optimizers) == TrainingState(3)
    assert differing(dict(other.ema.model.state_dict()), dict(untouched)) == []
    with pytest.raises(CheckpointError, match=r"ema\.safetensors"):
        other.load(folder)


def test_the_checkpoint_is_named_after_its_step_and_latest_points_to_it(trained: Training, folder: Path) -> None:
    assert trained.save(folder, 7) == folder / "step_00000007"
    name, digest = (folder / LATEST).read_text(encoding="utf-8").split()
    assert name == "step_00000007"
    assert digest == hashlib.sha256((folder / name / MANIFEST).read_bytes()).hexdigest()


def test_older_checkpoints_are_removed_after_a_new_one(trained: Training, folder: Path) -> None:
    for step in (1, 2, 10):
        trained.save(folder, step)
        assert sorted(path.name for path in folder.iterdir()) == ["latest", f"step_{step:08d}"]


def test_saving_the_same_step_again_leaves_it_as_it_is(trained: Training, folder: Path) -> None:
    trained.save(folder, 1)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    trained.save(folder, 1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


@pytest.mark.parametrize(
    ("name", "failing_file"),
    [*itertools.product(OPTIMIZER_NAMES, (1, 2, 3, 4, 5)), ("muon", 6)],
    ids=lambda value: str(value),
)
def test_an_error_at_any_file_of_a_save_leaves_the_previous_checkpoint(
    name: OptimizerName, failing_file: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start_training(name)
    take_step(training, 0)
    training.save(folder, 1)
    saved = everything_in(training)
    take_step(training, 1)
    calls = 0

    def write_until_it_fails(path: Path, content: bytes) -> Digest:
        nonlocal calls
        calls += 1
        if calls == failing_file:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.EIO, "Input/output error")
        return write_file(path, content)

    for module in (checkpoint, manifest):
        monkeypatch.setattr(module, "write_file", write_until_it_fails)
    with pytest.raises(CheckpointError, match=r"step_00000002: .*Input/output error"):
        training.save(folder, 2)
    monkeypatch.undo()
    assert calls == failing_file

    resumed = start_training(name, seed=1)
    assert resumed.load(folder).step == 1
    assert differing(everything_in(resumed), saved) == []


def test_a_crash_at_any_flush_of_a_save_leaves_the_previous_or_the_new_checkpoint(
    trained: Training, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_on = start_training(seed=2)
    take_step(moved_on, 0)
    expected = {1: everything_in(trained), 2: everything_in(moved_on)}
    flush, outcomes = os.fsync, []
    for failing_flush in range(1, 100):
        trained.save(folder, 1)
        calls = 0

        def flush_until_it_fails(descriptor: int, failing: int = failing_flush) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError("I/O error")
            flush(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", flush_until_it_fails)
            try:
                moved_on.save(folder, 2)
                assert calls < failing_flush
                break
            except CheckpointError:
                resumed = start_training(seed=4)
                outcomes.append(resumed.load(folder).step)
        assert differing(everything_in(resumed), expected[outcomes[-1]]) == []
    assert len(outcomes) >= 6  # four files, the folder, the pointer, and the folder again
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == 1


def test_what_a_failed_save_left_is_gone_after_the_next_one(
    trained: Training, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", fail_to_write)
        with pytest.raises(CheckpointError):
            trained.save(folder, 2)
    trained.save(folder, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_00000003"]


def test_what_a_signal_handler_raises_between_two_renames_loses_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "old").touch()
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.startswith(".model.partial-"):
            raise RuntimeError("DataLoader worker is killed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(RuntimeError, match="is killed"), atomic_folder(folder / "model"):
        pass
    assert [path.name for path in folder.iterdir()] == ["model"]
    assert (folder / "model" / "old").is_file()


def test_a_staged_folder_touches_only_what_staging_left(tmp_path: Path) -> None:
    left = ".model[1].previous-0123456789abcdef", ".model[1].partial-0123456789abcdef"
    for name in (".model[1].partial", ".model[1].previous", ".model1.partial-0123456789abcdef", *left):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    with atomic_folder(tmp_path / "model[1]") as staged:
        (staged / "new").touch()
        assert not (tmp_path / left[1]).exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        [
            ".model[1].partial",
            ".model[1].previous",
            ".model1.partial-0123456789abcdef",
            "model[1]",
            "new",
            *["mine"] * 3,
        ]
    )


def test_two_at_a_time_stage_a_folder_each(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as one:
        (one / "one").touch()
        with atomic_folder(tmp_path / "model") as other:
            (other / "other").touch()
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["other"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def fail_to_write(path: Path, content: bytes) -> Digest:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_with_the_bytes_that_are_free(
    trained: Training, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_file", fail_to_write)
    with pytest.raises(CheckpointError, match=rf"No space left on device.*[\d,]+ bytes .*{folder}\b"):
        trained.save(folder, 2)


def test_a_full_disk_is_a_checkpoint_error_and_the_previous_one_stays(trained: Training, folder: Path) -> None:
    trained.save(folder, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step_00000002: .*File too large"):
            trained.save(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert start_training(seed=1).load(folder).step == 1


def test_a_file_where_the_folder_should_be_is_a_checkpoint_error(trained: Training, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step_00000001: .*Not a directory"):
        trained.save(tmp_path / "checkpoints", 1)


def test_where_no_checkpoint_is_there_is_nothing_to_resume_from(trained: Training, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"latest: .*no checkpoint"):
        trained.load(folder)
    assert latest_checkpoint(folder) is None


CHECKPOINT_FILES = ["model.safetensors", "ema.safetensors", "optimizer_0.safetensors", "state.json", MANIFEST]


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


@pytest.mark.parametrize("kept", [1, 2])
def test_without_latest_the_newest_whole_checkpoint_is_taken_and_nothing_is_lost(
    kept: int, trained: Training, folder: Path
) -> None:
    first = trained.save(folder, 1)
    if kept == 2:
        shutil.copytree(first, folder / "aside")
        trained.save(folder, 2)
        (folder / "aside").rename(first)
    (folder / LATEST).unlink()
    found = latest_checkpoint(folder)
    assert found is not None
    assert found.name == f"step_0000000{kept}"
    again = start_training()
    assert again.load(folder).step == kept
    assert differing(everything_in(again), everything_in(trained)) == []
    flipped = bytearray((found / "model.safetensors").read_bytes())
    flipped[-1] ^= 1
    (found / "model.safetensors").write_bytes(flipped)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*changed"):
        again.load(folder)


def test_what_the_user_put_beside_checkpoints_stays(trained: Training, folder: Path) -> None:
    shutil.copytree(trained.save(folder, 1), folder / "step_00000001_keep_for_paper")
    (folder / "step_notes.txt").write_text("look at step 1")
    (folder / ".step_00000001.partial-0123456789abcdef").mkdir()
    trained.save(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        LATEST, "step_00000001_keep_for_paper", "step_00000002", "step_notes.txt",
    ]  # fmt: skip


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
        with pytest.raises(CheckpointError, match=f"{path.name}.*regular file"):
            trained.save(folder, 1)


def test_a_state_that_json_cannot_hold_is_not_written(trained: Training, folder: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(folder, trained.model, None, trained.optimizers, TrainingState(1, math.nan))
    assert not folder.exists()
