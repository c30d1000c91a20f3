"""Training from a recipe to a run folder, repeatable to the bit."""

import io
import json
import math
import re
import threading
import unicodedata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from exfuse.data.datasets import open_dataset
from exfuse.distributed import DistContext
from exfuse.evaluation.bootstrap import image_counts
from exfuse.evaluation.evaluate import SplitScores, score_split
from exfuse.metrics import ConfusionMatrix
from exfuse.models.backbones import resnet
from exfuse.predictor import Predictor
from exfuse.training import loop, segmentation
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train
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
from support.training_hooks import keep_networks

MODEL_FILES = {"model.safetensors", "config.json", "README.md", "manifest.json"}


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


def test_in_another_thread_a_run_goes_without_signals(finished: Path, pack: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=train_quietly, args=(tiny_config(pack, tmp_path / "run"),))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / "run", finished)


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


def test_decoded_images_train_the_same_network(
    pack: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    train_quietly(tiny_config(pack, tmp_path / "run", "data.cache=true"))
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 1
    assert_same_run(tmp_path / "run", finished)
