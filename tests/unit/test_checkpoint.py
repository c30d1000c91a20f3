"""Checkpoints: what is restored, and what survives a crash."""

import copy
import errno
import hashlib
import itertools
import os
import resource
import shutil
from pathlib import Path

import pytest

from exfuse import manifest
from exfuse.atomic_io import Digest, atomic_folder, write_file
from exfuse.errors import CheckpointError
from exfuse.manifest import MANIFEST
from exfuse.training import checkpoint
from exfuse.training.checkpoint import (
    LATEST,
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from exfuse.training.optim import OptimizerName
from support.checkpoints import OPTIMIZER_NAMES, Training, differing, everything_in, start_training, take_step


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("name", "momentum"), [*((name, 0.9) for name in OPTIMIZER_NAMES), ("sgd", 0.0)], ids=lambda value: str(value)
)
def test_after_a_round_trip_the_next_step_is_bit_equal(
    name: OptimizerName, momentum: float, channels_last: bool, folder: Path
) -> None:
    going_on = start_training(name, channels_last, seed=0, momentum=momentum, real=True)
    for step in range(2):
        take_step(going_on, step)
    going_on.save(folder, 2)
    saved = everything_in(going_on)

    resumed = start_training(name, channels_last, seed=1, momentum=momentum, real=True)
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
    with pytest.raises(CheckpointError, match=r"step_00000001: .*File exists"):
        trained.save(tmp_path / "checkpoints", 1)


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
