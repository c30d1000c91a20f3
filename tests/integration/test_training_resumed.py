"""Training that was stopped, cut off or resumed: the same run to the bit."""

import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.summary.writer import event_file_writer

from exfuse.data.datasets import SegmentationDataset
from exfuse.data.samples import Sample
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.models.exfuse import ExFuse
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.outputs.folder import claim_folder
from exfuse.training import segmentation
from exfuse.training.checkpoint import latest_checkpoint
from exfuse.training.log import RunLog
from exfuse.training.recipes import dump_config
from exfuse.training.segmentation import train
from exfuse.training.signals import Interrupted
from exfuse.training.task import Evaluation
from support.tiny_run import (
    STEPS,
    assert_same_run,
    losses_of,
    read_metrics,
    read_scalars,
    tensors_in,
    tiny_config,
    train_quietly,
)
from support.training_hooks import do_after_step, keep_networks, press_control_c, stopped_after


def crash() -> None:
    raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    step: int, finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        do_after_step(patch, step, press_control_c)
        with stopped_after(step):
            train_quietly(config)
    assert signal.getsignal(signal.SIGINT) is before
    assert latest_checkpoint(config.output / "checkpoints").name == f"step_{step:08d}"
    # A signal that waits when the scoring would begin comes before it.
    known = {"train": step, "val": step - 1}
    expected = [record for record in read_metrics(finished) if record["step"] <= known[record["kind"]]]
    assert read_metrics(config.output) == expected
    assert not (config.output / "report.html").exists()

    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)
    assert sorted(read_scalars(config.output, "train/loss")) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("hours", [-24, 0, 24])
def test_tensorboard_shows_all_steps_whatever_the_clock_says_when_a_run_goes_on(
    hours: int, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    for start in range(0, STEPS, 2):
        with monkeypatch.context() as patch:
            now = time.time() + 3600 * hours * start
            patch.setattr(event_file_writer.time, "time", lambda now=now: now)
            if start + 2 < STEPS:
                do_after_step(patch, 2, press_control_c)
                with pytest.raises(Interrupted):
                    train_quietly(config, resume=start > 0)
            else:
                train_quietly(config, resume=True)
    recorded = {record["step"]: record["loss"] for record in read_metrics(config.output) if record["kind"] == "train"}
    assert sorted(recorded) == list(range(1, STEPS + 1))
    assert read_scalars(config.output, "train/loss") == pytest.approx(recorded)


def test_a_run_can_be_interrupted_again_and_again(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    for start in range(STEPS - 1):
        with monkeypatch.context() as patch:
            do_after_step(patch, 1, press_control_c)
            with stopped_after(start + 1):
                train_quietly(config, resume=start > 0)
    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


def test_a_run_that_crashed_after_its_last_checkpoint_does_those_steps_again(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    with monkeypatch.context() as patch:
        do_after_step(patch, 6, crash)
        with pytest.raises(RuntimeError, match="plug"):
            train_quietly(config)
    assert latest_checkpoint(config.output / "checkpoints").name == "step_00000004"
    assert [record["step"] for record in read_metrics(config.output)] == [1, 2, 3, 3, 4, 5]
    with (config.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 6, "lo')

    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)
    assert sorted(read_scalars(config.output, "train/loss")) == list(range(1, STEPS + 1))


def test_a_second_signal_leaves_at_once(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    def press_it_twice() -> None:
        press_control_c()
        press_control_c()

    config = tiny_config(pack, tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "_exit", leave)
        do_after_step(patch, 3, press_it_twice)
        with pytest.raises(Left, match="130"):
            train_quietly(config)
    assert signal.getsignal(signal.SIGINT) is before
    assert latest_checkpoint(config.output / "checkpoints").name == "step_00000002"
    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


def test_a_signal_after_the_last_step_keeps_it_and_the_scoring_is_done_when_resumed(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    with monkeypatch.context() as patch:
        do_after_step(patch, STEPS, press_control_c)
        with stopped_after(STEPS):
            train_quietly(config)
    train_quietly(config, resume=True)
    assert_same_run(tmp_path / "run", finished)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("image", [0, 2])
def test_a_signal_while_scoring_keeps_the_step_and_the_scoring_is_done_again(
    number: signal.Signals, image: int, finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seen = tiny_config(pack, tmp_path / "run"), itertools.count()
    labels = TorchEngine.labels

    def stop_at_an_image(engine: TorchEngine, images: np.ndarray) -> np.ndarray:
        if next(seen) == image:
            signal.raise_signal(number)
        return labels(engine, images)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "labels", stop_at_an_image)
        with stopped_after(3) as stopped:
            train_quietly(config)
    assert stopped.value.exit_code == 128 + number
    assert [record["kind"] for record in read_metrics(config.output)] == ["train"] * 3
    assert not (config.output / "model").exists()
    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


def test_a_signal_while_waiting_for_data_loses_nothing(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, read = tiny_config(pack, tmp_path / "run"), SegmentationDataset.__getitem__
    seen = itertools.count()

    def stop_at_the_tenth(dataset: SegmentationDataset, index: int) -> Sample:
        if dataset.split == "train" and next(seen) == 12 + 9:  # the first twelve are the check before training
            signal.raise_signal(signal.SIGTERM)
        return read(dataset, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataset, "__getitem__", stop_at_the_tenth)
        with stopped_after(2):
            train_quietly(config)
    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_without_an_average_the_network_trains_on_after_it_was_scored(
    optimizer: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("ema_decay=0", f"optimizer.name={optimizer}", "optimizer.learning_rate=0.003")
    networks, modes = keep_networks(monkeypatch), []
    advance = RunLog.advance

    def look(log: RunLog, status: str) -> None:
        advance(log, status)
        modes.append(networks[-1].training)

    monkeypatch.setattr(RunLog, "advance", look)
    train_quietly(tiny_config(pack, tmp_path / "whole", *options))
    assert modes == [True] * STEPS
    config = tiny_config(pack, tmp_path / "parts", *options)
    with monkeypatch.context() as patch:
        do_after_step(patch, 4, press_control_c)
        with pytest.raises(Interrupted):
            train_quietly(config)
    train_quietly(config, resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_the_scoring_that_was_cut_off_is_in_the_checkpoint_once_done(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    with monkeypatch.context() as patch:
        do_after_step(patch, STEPS, press_control_c)
        with pytest.raises(Interrupted):
            train_quietly(config)
    train_quietly(config, resume=True)
    checkpoint = latest_checkpoint(config.output / "checkpoints")
    assert checkpoint.name == "step_00000006_scored"
    assert json.loads((checkpoint / "state.json").read_text())["evaluated_step"] == STEPS
    times = {path: path.stat().st_mtime_ns for path in (config.output / "model_last").iterdir()}
    train_quietly(config, resume=True)
    assert {path: path.stat().st_mtime_ns for path in (config.output / "model_last").iterdir()} == times


def test_a_signal_while_the_report_is_written_is_not_lost(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = segmentation.run_report

    def render_and_stop(*arguments: Any) -> str:
        press_control_c()
        return render(*arguments)

    monkeypatch.setattr(segmentation, "run_report", render_and_stop)
    with stopped_after(STEPS):
        train_quietly(tiny_config(pack, tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").is_file()
    assert_same_run(tmp_path / "run", finished)


def test_a_signal_before_the_first_step_leaves_nothing_to_resume(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(info: ModelMetadata) -> ExFuse:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not reached")

    monkeypatch.setattr(segmentation, "build_model", stop)
    with stopped_after(0) as stopped:
        train_quietly(tiny_config(pack, tmp_path / "run"))
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run").exists()


def test_resuming_a_finished_run_changes_nothing(finished: Path, pack: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    report = train_quietly(tiny_config(pack, run), resume=True)
    assert_same_run(run, finished)
    assert (
        report.matrix.counts.tolist() == json.loads((run / "model" / "config.json").read_text())["metrics"]["confusion"]
    )


def test_resuming_where_nothing_was_begins_at_the_beginning_and_says_so(
    finished: Path, pack: Path, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=200)
    train(tiny_config(pack, tmp_path / "run"), True, console)
    assert re.search(rf"{tmp_path / 'run'}: .*step 0\b", console.file.getvalue())
    assert_same_run(tmp_path / "run", finished)


def test_resuming_may_move_the_data_and_write_down_more_often(
    finished: Path, pack: Path, own_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        do_after_step(patch, 3, press_control_c)
        with pytest.raises(Interrupted):
            train_quietly(tiny_config(pack, tmp_path / "run", "log_every=3"))
    moved = Path((tmp_path / "run").rename(tmp_path / "moved"))
    train_quietly(tiny_config(own_pack, moved, "checkpoint_every=1", "log_every=1"), resume=True)
    assert losses_of(moved) == losses_of(finished)[2:]
    tensors, expected = tensors_in(moved / "checkpoints"), tensors_in(finished / "checkpoints")
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())


def test_a_run_without_a_checkpoint_may_begin_with_other_settings(pack: Path, tmp_path: Path) -> None:
    config = tiny_config(pack, tmp_path / "run", "epochs=1")
    with claim_folder(config.output, "exfuse train") as folder:  # a run that was killed at its first files
        folder.write("config.yaml", dump_config(tiny_config(pack, tmp_path / "run")).encode())
    train_quietly(config, resume=True)
    assert (config.output / "config.yaml").read_text() == dump_config(config)


def test_a_model_that_was_moved_aside_by_a_save_that_was_cut_off_is_put_back(pack: Path, tmp_path: Path) -> None:
    config = tiny_config(pack, tmp_path / "run")
    train_quietly(config)
    aside = (config.output / "model").rename(config.output / ".model.previous-0123456789abcdef")
    train_quietly(config, resume=True)
    assert (config.output / "model" / "model.safetensors").is_file()
    assert not aside.exists()


def test_a_score_that_is_not_a_number_is_never_the_best(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, scores = segmentation.SegmentationTask.evaluate, iter([math.nan, 0.25, math.nan])

    def score_as_told(*arguments: Any) -> Evaluation:
        return replace(evaluate(*arguments), score=next(scores))

    monkeypatch.setattr(segmentation.SegmentationTask, "evaluate", score_as_told)
    config = tiny_config(pack, tmp_path / "run", "epochs=3", "checkpoint_every=3")
    with monkeypatch.context() as patch:
        do_after_step(patch, 4, press_control_c)
        with pytest.raises(Interrupted):
            train_quietly(config)
    train_quietly(config, resume=True)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "run" / "checkpoints" / "step_00000009" / "state.json").read_text()
    state = json.loads(text, parse_constant=refuse)
    assert (state["best_score"], state["best_step"]) == (0.25, 6)
