"""Training from a recipe to a run folder: repeatable to the bit, interruptible at any step."""

import errno
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from tensorboard.summary.writer import event_file_writer
from torch import Tensor

from exfuse.atomic_io import atomic_write_text
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.loader import ResumableBatchSampler
from exfuse.data.samples import Sample
from exfuse.distributed import DistContext
from exfuse.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from exfuse.evaluation.bootstrap import image_counts
from exfuse.evaluation.evaluate import SplitScores, score_split
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.losses import SegmentationLoss
from exfuse.metrics import ConfusionMatrix
from exfuse.models.backbones import resnet
from exfuse.models.exfuse import ExFuse
from exfuse.models.registry import create_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.outputs.folder import claim_folder
from exfuse.predictor import Predictor
from exfuse.training import loop, nonfinite, segmentation
from exfuse.training.checkpoint import latest_checkpoint
from exfuse.training.log import RunLog
from exfuse.training.recipes import dump_config, load_config
from exfuse.training.run import check_shards
from exfuse.training.segmentation import train
from exfuse.training.signals import Interrupted
from exfuse.training.task import Evaluation
from support.special_files import be_a_pipe, be_endless
from support.tiny_run import (
    STEPS,
    TINY,
    assert_same_run,
    call_exfuse,
    losses_of,
    read_metrics,
    read_scalars,
    tensors_in,
    tiny_config,
    train_quietly,
)
from support.training_hooks import do_after_step, keep_networks, press_control_c, spoil_gradients, stopped_after

MODEL_FILES = {"model.safetensors", "config.json", "README.md", "manifest.json"}


@pytest.fixture(scope="module")
def finished(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run folder of a whole run that nothing disturbed; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train_quietly(tiny_config(pack, run))
    return run


@pytest.mark.parametrize(("size", "gradient_accumulation"), [(3, 1), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(pack: Path, tmp_path: Path, size: int, gradient_accumulation: int):
    config = tiny_config(pack, tmp_path / "run", f"gradient_accumulation={gradient_accumulation}")
    with pytest.raises(ConfigError, match=rf"\bbatch_size 4 .* {size * gradient_accumulation} "):
        check_shards(config, DistContext(0, size, torch.device("cpu")))


def crash() -> None:
    raise RuntimeError("pulled the plug")


def test_a_run_folder_holds_everything_about_the_run(finished: Path) -> None:
    expected = {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "model", "model_last", "report.html"}
    assert {path.name for path in finished.glob("[!.]*")} == expected
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"latest", f"step_{STEPS:08d}"}
    assert {path.name for path in (finished / "model").iterdir()} == MODEL_FILES
    assert {path.name for path in (finished / "model_last").iterdir()} == MODEL_FILES


def test_the_written_configuration_is_that_of_the_run(finished: Path, pack: Path) -> None:
    assert load_config(str(finished / "config.yaml")) == tiny_config(pack, finished)


def test_every_step_and_every_evaluation_is_recorded_once(finished: Path) -> None:
    records = read_metrics(finished)
    kinds = [(record["kind"], record["step"]) for record in records]
    steps = [("train", 1), ("train", 2), ("train", 3), ("val", 3), ("train", 4), ("train", 5), ("train", 6), ("val", 6)]
    assert kinds == steps
    assert [record["epoch"] for record in records] == pytest.approx([1 / 3, 2 / 3, 1, 1, 4 / 3, 5 / 3, 2, 2])
    rates = [record["lr"] for record in records if record["kind"] == "train"]
    falling = [(1 - step / 4) ** 0.9 for step in range(4)]
    assert rates == pytest.approx([0.003 * factor for factor in [1 / 3, 2 / 3, *falling]])
    assert all(math.isfinite(loss) for loss in losses_of(finished))
    for record in records:
        if record["kind"] == "val":
            assert 0 < record["mean_iou"] < record["pixel_accuracy"] < 1


def test_tensorboard_shows_the_recorded_numbers(finished: Path) -> None:
    for kind, name in (("train", "loss"), ("train", "lr"), ("val", "mean_iou"), ("val", "pixel_accuracy")):
        recorded = {record["step"]: record[name] for record in read_metrics(finished) if record["kind"] == kind}
        assert read_scalars(finished, f"{kind}/{name}") == pytest.approx(recorded)


def test_the_report_is_one_page_that_needs_no_other_file(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert len(re.findall(r'<img alt="" src="data:image/(png|jpeg);base64,', page)) == 2 + 4  # plots, four images
    assert page.count("<img") == 2 + 4
    assert "http" not in page.replace("http-equiv", "")
    assert "striped_disc" in page
    best = max(record["mean_iou"] for record in read_metrics(finished) if record["kind"] == "val")
    assert f"mean IoU <b>{100 * best:.2f}</b>" in page


def test_the_model_folder_holds_the_scores_that_the_model_in_it_has(finished: Path, pack: Path) -> None:
    predictor = Predictor.from_pretrained(finished / "model", engine="torch")
    alone = DistContext(0, 1, torch.device("cpu"))
    matrix = score_split(predictor, open_dataset(pack, "val"), alone, Console(quiet=True)).matrix
    assert matrix.counts.tolist() == predictor.info.metrics["confusion"]
    step = predictor.info.metrics["protocol"]["step"]
    recorded = {record["step"]: record["mean_iou"] for record in read_metrics(finished) if record["kind"] == "val"}
    assert recorded[step] == matrix.mean_iou() == max(recorded.values())


def test_the_last_model_is_the_moving_average_of_the_last_step(finished: Path) -> None:
    last = tensors_in(finished / "model_last")
    average = tensors_in(finished / "checkpoints" / f"step_{STEPS:08d}")
    assert last
    for name, value in last.items():
        assert torch.equal(value, average[name.replace("model.safetensors", "ema.safetensors")])


def test_training_returns_the_report_of_the_best_model_and_says_how_it_goes(pack: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    report = train(tiny_config(pack, tmp_path / "run"), False, console)
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "val"]
    assert report.matrix.mean_iou() == max(record["mean_iou"] for record in records)
    assert report.protocol["split"] == "val"
    for record in records:
        assert f"step {record['step']}: val mIoU {record['mean_iou']:.4f}" in console.file.getvalue()
    assert "step 3: val mIoU" in console.file.getvalue().partition("(best so far)")[0]


def test_the_best_model_is_kept_apart_from_the_last(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([30, 60, 40])

    def make_scores_up(*arguments: object, check_stop: object) -> SplitScores:
        matrix = ConfusionMatrix(7)
        correct = next(accuracies)
        matrix.counts[0, 0], matrix.counts[0, 1] = correct, 100 - correct
        return SplitScores(matrix, image_counts(matrix.counts.numpy())[None], {})

    monkeypatch.setattr(segmentation, "score_split", make_scores_up)
    run = tmp_path / "run"
    report = train_quietly(tiny_config(pack, run, "epochs=3"))
    steps = {
        folder: json.loads((run / folder / "config.json").read_text())["metrics"]["protocol"]["step"]
        for folder in ("model", "model_last")
    }
    assert steps == {"model": 6, "model_last": 9}
    assert report.matrix.mean_iou() == pytest.approx(0.6)
    best, last = tensors_in(run / "model"), tensors_in(run / "model_last")
    assert any(not torch.equal(best[name], last[name]) for name in best)
    state = json.loads((run / "checkpoints" / "step_00000009" / "state.json").read_text())
    assert state == {
        "step": 9, "best_score": pytest.approx(0.6), "best_step": 6, "evaluated_step": 9, "skipped": 0,
        "data_sha256": mock.ANY,
    }  # fmt: skip


def test_evaluations_follow_every_nth_epoch_and_the_last_one(pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "epochs=3", "evaluate_every=2", "log_every=4"))
    kinds = [(record["kind"], record["step"]) for record in read_metrics(tmp_path / "run")]
    assert kinds == [("train", 4), ("val", 6), ("train", 8), ("train", 9), ("val", 9)]


def test_two_runs_with_one_seed_are_bit_identical(finished: Path, pack: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # what the process did before must not matter
    np.random.seed(6)
    train_quietly(tiny_config(pack, tmp_path / "run"))
    assert_same_run(tmp_path / "run", finished)


def test_two_runs_with_different_seeds_differ(finished: Path, pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "seed=1"))
    assert losses_of(tmp_path / "run") != losses_of(finished)


def test_reading_in_another_process_changes_nothing(finished: Path, pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "data.workers=2"))
    assert_same_run(tmp_path / "run", finished)


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


@pytest.mark.parametrize(
    ("name", "become"),
    [(name, become) for name in ("config.yaml", "metrics.jsonl") for become in (be_a_pipe, be_endless)]
    + [(".exfuse.jsonl", be_a_pipe)],
)
def test_a_pipe_or_a_device_in_a_run_folder_is_refused_and_not_read(
    name: str, become: Callable[[Path], None], finished: Path, pack: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / name).unlink()
    become(run / name)
    with pytest.raises((CheckpointError, ConfigError, OutputError), match=re.escape(str(run))):
        train_quietly(tiny_config(pack, run), resume=True)


def test_a_log_file_gets_whole_lines_and_no_control_characters(pack: Path, tmp_path: Path) -> None:
    settings = [f"data.root={pack}", f"output={tmp_path / 'run'}", "data.cache=true", "optimizer.warmup_steps=50"]
    outcome = call_exfuse("train", "demo", *TINY, *settings, columns=40)
    assert outcome.code == 0, outcome.errors
    assert outcome.errors == ""
    assert not [letter for letter in outcome.output if unicodedata.category(letter) in ("Cc", "Cs") and letter != "\n"]
    progress = outcome.output[: outcome.output.index("val: 4 images")].splitlines()[:-1]
    record = r"step \d/6  epoch \S+  loss \S+  lr \S+  seconds_per_step \S+  waiting \S+"
    score = r"step \d: val mIoU 0\.\d{4}( \(best so far\))?"
    expected = [
        r"12 images, 6 steps, a network of 0\.\d M parameters, fp32 on cpu: .*/run",
        "the warm-up is shortened from 50 steps to 3, half of the run",
        *[record] * 3, score, *[record] * 3, score,
    ]  # fmt: skip
    assert len(progress) == len(expected)
    for line, pattern in zip(progress, expected, strict=True):
        assert re.fullmatch(pattern, line), line


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


@pytest.mark.parametrize("what", ["images", "names of classes"])
def test_a_run_does_not_go_on_with_other_data(what: str, finished: Path, own_pack: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    if what == "images":
        names = (own_pack / "train.txt").read_text().split()
        (own_pack / "train.txt").write_text("\n".join(names[:-1]))
    else:
        content = json.loads((own_pack / "classes.json").read_text())
        first, second, *_ = content["classes"]
        first["name"], second["name"] = second["name"], first["name"]
        (own_pack / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"data .*{run} "):
        train_quietly(tiny_config(own_pack, run), resume=True)


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

    monkeypatch.setattr(ModelMetadata, "build", stop)
    with stopped_after(0) as stopped:
        train_quietly(tiny_config(pack, tmp_path / "run"))
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run").exists()


def test_in_another_thread_a_run_goes_without_signals(finished: Path, pack: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=train_quietly, args=(tiny_config(pack, tmp_path / "run"),))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / "run", finished)


def test_resuming_a_finished_run_changes_nothing(finished: Path, pack: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    report = train_quietly(tiny_config(pack, run), resume=True)
    assert_same_run(run, finished)
    assert (
        report.matrix.counts.tolist() == json.loads((run / "model" / "config.json").read_text())["metrics"]["confusion"]
    )


def test_a_second_start_in_the_folder_of_a_run_is_refused(finished: Path, pack: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(OutputError, match=f"{finished} .*--resume"):
        train_quietly(tiny_config(pack, finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == times


def test_resuming_where_nothing_was_begins_at_the_beginning_and_says_so(
    finished: Path, pack: Path, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=200)
    train(tiny_config(pack, tmp_path / "run"), True, console)
    assert re.search(rf"{tmp_path / 'run'} .*step 0\b", console.file.getvalue())
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize(
    "change", ["model.decoder_width=12", "optimizer.name=sgd", "seed=1", "data.flip=0", "epochs=3"]
)
def test_resuming_with_other_settings_is_refused_and_changes_nothing(change: str, finished: Path, pack: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    key, _, value = change.partition("=")
    with pytest.raises(ConfigError, match=rf" {re.escape(key)}=\S+ \(now {value}"):
        train_quietly(tiny_config(pack, finished, change), resume=True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == times


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


@pytest.mark.parametrize("left", ["checkpoints", "checkpoints model", "checkpoints model model_last"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_begun_anew_over_what_is_left_of_it(
    left: str, resume: bool, finished: Path, pack: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in left.split():
        shutil.rmtree(run / name)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=re.escape(str(run))):
        train_quietly(tiny_config(pack, run, "seed=9"), resume)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_weights_before_it(
    value: float, finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run", "checkpoint_every=1")
    compute, calls = SegmentationLoss.__call__, itertools.count(1)

    def spoil_the_fifth(loss: SegmentationLoss, *arguments: Any) -> Tensor:
        return compute(loss, *arguments) * (value if next(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        networks = keep_networks(patch)
        patch.setattr(SegmentationLoss, "__call__", spoil_the_fifth)
        with pytest.raises(TrainingError) as stopped:
            train_quietly(config)
    keys = [list(key) for key in next(iter(ResumableBatchSampler(12, 4, 4, 5, seed=config.seed)))]
    assert re.search(rf"step 5: .*\bloss .*\b{value}\b", str(stopped.value))
    written = config.output / "not_finite_0.json"
    assert str(written) in str(stopped.value)
    record = json.loads(written.read_text())
    assert (record["step"], record["seed"], record["samples"]) == (5, 0, keys)
    assert record["files"] == [str(pack / "images" / f"train_{index:04d}.jpg") for _, index in keys]
    network = networks[0]
    saved = tensors_in(config.output / "checkpoints" / "step_00000004")
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, saved[f"model.safetensors {name}"])
    assert losses_of(config.output) == losses_of(finished)[:4]

    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    with monkeypatch.context() as patch:
        networks = keep_networks(patch)
        spoil_gradients(patch, {2})
        with pytest.raises(TrainingError, match=r"step 3: .*norm inf"):
            train_quietly(config)
    saved = tensors_in(config.output / "checkpoints" / "step_00000002")
    for name, parameter in networks[0].named_parameters():
        assert torch.equal(parameter, saved[f"model.safetensors {name}"])
    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 805306368 bytes."),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=["python", "torch", "c++", "cuda"],
)
@pytest.mark.parametrize("place", [(loop, "take_step"), (segmentation, "compute_stats"), (ModelMetadata, "build")])
def test_too_little_memory_is_one_of_our_errors_wherever_it_shows(
    place: tuple[object, str], error: Exception, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(*place, fail)
    with pytest.raises(TrainingError, match=r"memory .* data\.crop_size"):
        train_quietly(tiny_config(pack, tmp_path / "run"))


def test_a_full_disk_does_not_hide_what_was_not_finite(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        if path.name == "not_finite_0.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        atomic_write_text(path, text)

    spoil_gradients(monkeypatch, {0})
    monkeypatch.setattr(nonfinite, "atomic_write_text", refuse)
    with pytest.raises(CheckpointError, match=r"not_finite_0\.json: .*No space left.* step 1\b"):
        train_quietly(tiny_config(pack, tmp_path / "run"))


def test_a_model_that_was_moved_aside_by_a_save_that_was_cut_off_is_put_back(pack: Path, tmp_path: Path) -> None:
    config = tiny_config(pack, tmp_path / "run")
    train_quietly(config)
    aside = (config.output / "model").rename(config.output / ".model.previous-0123456789abcdef")
    train_quietly(config, resume=True)
    assert (config.output / "model" / "model.safetensors").is_file()
    assert not aside.exists()


def test_a_recipe_that_was_edited_in_the_run_folder_is_not_written_over(pack: Path, tmp_path: Path) -> None:
    config = tiny_config(pack, tmp_path / "run", "epochs=1")
    with claim_folder(config.output, "exfuse train") as folder:  # and killed before its first checkpoint
        folder.write("config.yaml", dump_config(config).encode())
    edited = dump_config(config) + "# mine\n"
    (config.output / "config.yaml").write_text(edited)
    with pytest.raises(OutputError, match=r"/config\.yaml .*exfuse train"):
        train_quietly(config)
    assert (config.output / "config.yaml").read_text() == edited


@pytest.mark.parametrize("kind", ["edited", "link"])
def test_a_report_that_was_changed_is_not_written_over(kind: str, pack: Path, tmp_path: Path) -> None:
    config, precious = tiny_config(pack, tmp_path / "run", "epochs=1"), tmp_path / "precious"
    train_quietly(config)
    report = config.output / "report.html"
    precious.write_text("mine")
    if kind == "link":
        report.unlink()
        report.symlink_to(precious)
    else:
        report.write_text("mine")
    console = Console(file=io.StringIO(), width=500)
    train(config, resume=True, console=console)
    assert report.read_text() == precious.read_text() == "mine"
    assert f"no report: {report} " in console.file.getvalue()


def test_steps_that_are_not_finite_are_left_out_if_asked_for(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run", "max_skipped_steps=2", "checkpoint_every=1")
    networks, seen = keep_networks(monkeypatch), []
    advance = RunLog.advance

    def look(log: RunLog, status: str) -> None:
        advance(log, status)
        seen.append({name: value.clone() for name, value in networks[0].state_dict().items()})

    monkeypatch.setattr(RunLog, "advance", look)
    spoil_gradients(monkeypatch, {1, 2, 4})
    train_quietly(config)
    same = [
        all(torch.equal(before[name], after[name]) for name in before) for before, after in itertools.pairwise(seen)
    ]
    assert same == [True, True, False, True, False]  # batch-norm statistics included
    assert json.loads((config.output / "not_finite_0.json").read_text())["step"] == 5


def test_more_such_steps_in_a_row_than_asked_for_stop_the_run(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run", "max_skipped_steps=2")
    spoil_gradients(monkeypatch, {1, 2, 3})
    with pytest.raises(TrainingError, match="step 4"):
        train_quietly(config)


def watch_losses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Returns a list that fills with (batch size, loss, labelled pixels) of each forward pass in training."""
    compute, seen = SegmentationLoss.__call__, []

    def compute_and_note(loss: SegmentationLoss, logits: Tensor, auxiliary: Any, target: Tensor) -> Tensor:
        value = compute(loss, logits, auxiliary, target)
        seen.append((len(target), float(value.detach()), int((target != 255).sum())))
        return value

    monkeypatch.setattr(SegmentationLoss, "__call__", compute_and_note)
    return seen


def test_accumulation_cuts_a_step_into_forward_passes(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_losses(monkeypatch)
    train_quietly(tiny_config(pack, tmp_path / "run", "epochs=1", "gradient_accumulation=2"))
    assert [size for size, _, _ in seen] == [2] * 6
    means = [
        (first * labelled + second * other) / (labelled + other)
        for (_, first, labelled), (_, second, other) in zip(seen[::2], seen[1::2], strict=True)
    ]
    assert losses_of(tmp_path / "run") == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.25])
def test_a_step_with_accumulation_and_clipping_is_the_one_on_paper(
    clip: float, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, networks = loop.training_loader, keep_networks(monkeypatch)
    seen: list[tuple[Tensor, Tensor]] = []

    def load_and_keep(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            seen.append((batch.images, batch.targets))
            yield batch

    monkeypatch.setattr(loop, "training_loader", load_and_keep)
    config = tiny_config(
        pack,
        tmp_path / "run",
        "epochs=1",
        "batch_size=12",
        "gradient_accumulation=3",
        "optimizer.name=sgd",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0",
        "optimizer.warmup_steps=0",
        "optimizer.learning_rate=0.5",
        f"optimizer.clip_grad_norm={clip}",
    )
    train_quietly(config)
    torch.manual_seed(config.seed)
    expected = create_model("exfuse_tiny", num_classes=7, **asdict(config.model.options)).train()
    ((images, masks),) = seen
    labelled = masks != 255
    for part in range(3):
        pixels = images[4 * part : 4 * part + 4].float() / 255
        output = expected((pixels - 0.5) / 0.25)
        target = masks[4 * part : 4 * part + 4].long()
        loss = torch.nn.functional.cross_entropy(output.logits, target, ignore_index=255)
        (auxiliary,) = output.auxiliary_logits
        enlarged = torch.nn.functional.interpolate(auxiliary, size=(64, 64), mode="bilinear")
        loss = loss + 0.4 * torch.nn.functional.cross_entropy(enlarged, target, ignore_index=255)
        (loss * (labelled[4 * part : 4 * part + 4].sum() / labelled.sum())).backward()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in expected.parameters()))
    assert norm > 0.25
    share = min(1.0, clip / norm) if clip else 1.0
    for ours, theirs in zip(networks[0].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.5 * share * theirs.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_close_to_float32(finished: Path, pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "precision=bf16"))
    losses, plain = losses_of(tmp_path / "run"), losses_of(finished)
    assert losses != plain
    assert losses[0] == pytest.approx(plain[0], rel=0.02)
    assert all(math.isfinite(loss) for loss in losses)
    protocol = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["metrics"]["protocol"]
    assert protocol["precision"] == "bf16"


@pytest.mark.parametrize(
    "options",
    [
        ("loss.dice=1",),
        ("loss.lovasz=1",),
        ("loss.auxiliary=0",),
        ("loss.class_weights=enet",),
        ("loss.class_weights=median_frequency",),
    ],
    ids=lambda options: options[0],
)
def test_each_choice_of_the_loss_changes_the_first_loss_and_trains(
    options: tuple[str, ...], finished: Path, pack: Path, tmp_path: Path
) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", *options, "evaluate_every=2"))
    losses = losses_of(tmp_path / "run")
    assert abs(losses[0] - losses_of(finished)[0]) > 0.01
    assert all(math.isfinite(loss) for loss in losses)
    assert min(losses[3:]) < losses[0]


def test_hard_example_mining_gives_a_larger_loss_once_pixels_are_easy(pack: Path, tmp_path: Path) -> None:
    longer = ("epochs=5", "evaluate_every=5", "optimizer.learning_rate=0.01")
    train_quietly(tiny_config(pack, tmp_path / "plain", *longer))
    train_quietly(tiny_config(pack, tmp_path / "ohem", *longer, "loss.ohem=true"))
    plain, mined = losses_of(tmp_path / "plain"), losses_of(tmp_path / "ohem")
    assert mined[0] == plain[0]  # nothing is easy yet
    assert sum(mined[-6:]) > sum(plain[-6:]) + 0.1
    assert all(math.isfinite(loss) for loss in mined)


@pytest.mark.parametrize(
    "options",
    [
        ("optimizer.name=sgd", "optimizer.schedule=cosine"),
        ("optimizer.name=muon",),
        ("optimizer.clip_grad_norm=0.1", "channels_last=false"),
    ],
    ids=lambda options: options[0],
)
def test_each_choice_of_the_optimizer_trains_and_resumes_to_the_bit(
    options: tuple[str, ...], finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*options, "evaluate_every=2")
    train_quietly(tiny_config(pack, tmp_path / "whole", *options))
    assert losses_of(tmp_path / "whole")[1:] != losses_of(finished)[1:]
    assert all(math.isfinite(loss) for loss in losses_of(tmp_path / "whole"))
    config = tiny_config(pack, tmp_path / "parts", *options)
    with monkeypatch.context() as patch:
        do_after_step(patch, 3, press_control_c)
        with pytest.raises(Interrupted):
            train_quietly(config)
    train_quietly(config, resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_the_moving_average_follows_the_weights_of_every_step(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, averages = keep_networks(monkeypatch), []
    batches = loop.training_loader

    def weights_now() -> dict[str, Tensor]:
        return {name: value.detach().double().clone() for name, value in networks[0].named_parameters()}

    def load_after_a_look(*arguments: Any) -> Any:
        averages.append(weights_now())
        yield from batches(*arguments)

    def follow(log: RunLog, status: str) -> None:
        step = len(averages) - 1
        kept = min(0.3, (1 + step) / (10 + step))
        averages.append({name: kept * averages[-1][name] + (1 - kept) * now for name, now in weights_now().items()})

    monkeypatch.setattr(loop, "training_loader", load_after_a_look)
    monkeypatch.setattr(RunLog, "advance", follow)
    train_quietly(tiny_config(pack, tmp_path / "run", "ema_decay=0.3"))
    last = tensors_in(tmp_path / "run" / "model_last")
    assert len(averages) == 1 + STEPS
    for name, expected in averages[-1].items():
        torch.testing.assert_close(last[f"model.safetensors {name}"].double(), expected, rtol=1e-4, atol=1e-6)


def test_without_a_moving_average_the_network_itself_is_kept(pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "ema_decay=0"))
    checkpoint = tensors_in(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}")
    assert not any(name.startswith("average") for name in checkpoint)
    last = tensors_in(tmp_path / "run" / "model_last")
    assert last
    assert all(torch.equal(value, checkpoint[name]) for name, value in last.items())


def test_backbone_weights_are_where_training_starts(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(77)
    state = resnet.tiny().state_dict()
    save_file(state, tmp_path / "backbone.safetensors")
    config = tiny_config(pack, tmp_path / "run", f"model.backbone_weights={tmp_path / 'backbone.safetensors'}")
    networks = keep_networks(monkeypatch)

    def compare_and_stop(*arguments: Any) -> None:
        own = networks[0].backbone.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in own.items())
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "training_loader", compare_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_quietly(config)
    assert len(networks) == 1


def test_backbone_weights_of_another_backbone_are_refused(pack: Path, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.safetensors")
    config = tiny_config(pack, tmp_path / "run", f"model.backbone_weights={tmp_path / 'backbone.safetensors'}")
    with pytest.raises(CheckpointError, match=r"backbone\.safetensors: .*conv1\.weight"):
        train_quietly(config)
    assert not (tmp_path / "run").exists()


def ignore_everything_in(mask: Path) -> None:
    with Image.open(mask) as image:
        labels = np.full_like(np.array(image), 255)
    Image.fromarray(labels).save(mask)


@pytest.mark.parametrize("weights", ["none", "enet", "median_frequency", "root_median_frequency"])
def test_an_image_without_a_labelled_pixel_alone_in_its_batch_breaks_nothing(
    weights: str, own_pack: Path, tmp_path: Path
) -> None:
    names = (own_pack / "train.txt").read_text().split()[:3]
    (own_pack / "train.txt").write_text("\n".join(names))
    ignore_everything_in(own_pack / "masks" / f"{names[1]}.png")
    options = ("batch_size=1", "loss.ohem=true", "loss.dice=1", "loss.lovasz=1", f"loss.class_weights={weights}")
    train_quietly(tiny_config(own_pack, tmp_path / "run", *options))
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 6
    assert losses.count(0.0) == 2  # that image, once an epoch
    assert all(math.isfinite(loss) for loss in losses)
    weights_after = tensors_in(tmp_path / "run" / "checkpoints")
    assert all(value.isfinite().all() for value in weights_after.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_pixel_is_refused_before_training(
    split: str, own_pack: Path, tmp_path: Path
) -> None:
    names = (own_pack / f"{split}.txt").read_text().split()
    for name in names:
        ignore_everything_in(own_pack / "masks" / f"{name}.png")
    with pytest.raises(DataError, match=rf"{own_pack}: .*\b{len(names)} masks of {split}\b"):
        train_quietly(tiny_config(own_pack, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_split_whose_only_labelled_image_cannot_be_read_is_refused(own_pack: Path, tmp_path: Path) -> None:
    first, *others = (own_pack / "val.txt").read_text().split()
    for name in others:
        ignore_everything_in(own_pack / "masks" / f"{name}.png")
    (own_pack / "images" / f"{first}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{first}\.jpg"):
        train_quietly(tiny_config(own_pack, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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


def make_unreadable(data: Path) -> str:
    path = data / "images" / "train_0007.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return r"train_0007\.jpg: .*readable"


def put_an_unknown_label_in_a_validation_mask(data: Path) -> str:
    path = data / "masks" / "val_0003.png"
    with Image.open(path) as image:
        labels = np.array(image)
    labels[10, 20] = 99
    Image.fromarray(labels).save(path)
    return r"val_0003\.png: 1 .*label 99\b.*row 10, column 20\b"


def remove_a_mask(data: Path) -> str:
    (data / "masks" / "train_0002.png").unlink()
    return r"train_0002\.png: .*no such"


def resize_a_mask(data: Path) -> str:
    path = data / "masks" / "train_0011.png"
    Image.new("L", (10, 20)).save(path)
    return r"train_0011\.png: .*10 x 20\b"


def empty_the_validation_list(data: Path) -> str:
    (data / "val.txt").write_text("\n")
    return "'val' .*no images"


def remove_the_images(data: Path) -> str:
    shutil.rmtree(data / "images")
    return "no data set .*'train'"


@pytest.mark.parametrize(
    "damage",
    [
        make_unreadable,
        put_an_unknown_label_in_a_validation_mask,
        remove_a_mask,
        resize_a_mask,
        empty_the_validation_list,
        remove_the_images,
    ],
)
def test_bad_data_is_reported_before_training_starts(
    damage: Callable[[Path], str], own_pack: Path, tmp_path: Path
) -> None:
    facts = damage(own_pack)
    with pytest.raises(DataError, match=facts):
        train_quietly(tiny_config(own_pack, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_split_that_is_not_there_is_a_data_error(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trian\.txt"):
        train_quietly(tiny_config(pack, tmp_path / "run", "data.train_split=trian"))
    assert not (tmp_path / "run").exists()


def test_without_a_data_set_nothing_starts(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root=FOLDER"):
        train_quietly(tiny_config(pack, tmp_path / "run", "data.root=null"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_model_is_refused_before_anything_is_written(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model 'exfuse_tyni'.*'exfuse_tiny'"):
        train_quietly(tiny_config(pack, tmp_path / "run", "model.name=exfuse_tyni"))
    assert not (tmp_path / "run").exists()


def test_decoded_images_train_the_same_network(
    pack: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    train_quietly(tiny_config(pack, tmp_path / "run", "data.cache=true"))
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 1
    assert_same_run(tmp_path / "run", finished)
