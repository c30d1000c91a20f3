"""Two processes under torchrun do what one does."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from piecewise import CASES, IMAGES, WEIGHTS, gradient_of
from rich.console import Console
from watched_exfuse import note_samples

from exfuse.data.datasets import open_dataset
from exfuse.data.loader import Batch
from exfuse.distributed import DistContext
from exfuse.evaluation import evaluate
from exfuse.evaluation.evaluate import SplitScores, score_split
from exfuse.predictor import Predictor
from exfuse.training import loop
from support.tiny_run import STEPS, TINY, call_exfuse, losses_of, read_metrics, tensors_in, tiny_config, train_quietly
from support.two_processes import run_two_processes

WATCHED = Path(__file__).with_name("watched_exfuse.py")
PIECEWISE = Path(__file__).with_name("piecewise.py")
ALONE_HERE = DistContext(0, 1, torch.device("cpu"))

# Cut like this, each forward pass holds one sample, so that batch norm sees the same in one process and in two.
ALONE = (*TINY, "gradient_accumulation=4", "optimizer.name=sgd", "optimizer.learning_rate=0.02")
SETTINGS = (*ALONE, "gradient_accumulation=2")


class TwoProcesses(NamedTuple):
    run: Path
    dist: list[dict[str, Any]]
    output: str


@pytest.fixture(scope="module")
def by_two(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """Returns a run of two processes that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("by_two")
    run = folder / "run"
    done = run_two_processes(WATCHED, folder, 0, "train", "demo", *SETTINGS, f"data.root={pack}", f"output={run}")
    assert done.returncode == 0, done.stderr
    dist = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return TwoProcesses(run, dist, done.stdout)


def test_two_processes_see_the_samples_of_one_and_take_its_steps(
    by_two: TwoProcesses, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loop.training_loader
    seen: list[list[tuple[int, int, str]]] = []

    def load_and_note(*arguments: Any) -> Iterator[Batch]:
        yield from note_samples(load(*arguments), seen)

    monkeypatch.setattr(loop, "training_loader", load_and_note)
    train_quietly(tiny_config(pack, tmp_path / "run", *ALONE))
    first, second = (rank["samples"] for rank in by_two.dist)
    shared = [[tuple(sample) for sample in mine + others] for mine, others in zip(first, second, strict=True)]
    assert len(seen) == STEPS
    assert shared == seen
    assert all(len(step) == 2 for step in first + second)
    assert losses_of(by_two.run) == pytest.approx(losses_of(tmp_path / "run"), rel=1e-3)


def test_two_processes_end_with_the_same_parameters(by_two: TwoProcesses) -> None:
    first, second = by_two.dist
    assert first["parameters"] == second["parameters"]


def test_two_processes_leave_one_run_and_say_everything_once(by_two: TwoProcesses) -> None:
    steps = [(record["kind"], record["step"]) for record in read_metrics(by_two.run)]
    expected = [("train", 1), ("train", 2), ("train", 3), ("val", 3), ("train", 4), ("train", 5), ("train", 6)]
    assert steps == [*expected, ("val", 6)]
    assert len(list((by_two.run / "tensorboard").iterdir())) == 1
    for line in ("step 3: val mIoU", "step 6: val mIoU", "val: 4 images", "pixel accuracy", "report.html"):
        assert by_two.output.count(line) == 1, line


def test_the_scores_of_two_processes_are_those_of_the_model_they_leave(by_two: TwoProcesses, pack: Path) -> None:
    for folder in ("model", "model_last"):
        predictor = Predictor.from_pretrained(by_two.run / folder, engine="torch")
        alone = DistContext(0, 1, torch.device("cpu"))
        matrix = score_split(predictor, open_dataset(pack, "val"), alone, Console(quiet=True)).matrix
        assert matrix.counts.tolist() == predictor.info.metrics["confusion"]


def test_control_c_on_one_of_two_processes_stops_both_and_they_resume_to_the_bit(
    by_two: TwoProcesses, pack: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("train", "demo", *SETTINGS, f"data.root={pack}", f"output={run}")
    stopped = run_two_processes(WATCHED, tmp_path, 4, *command)
    assert stopped.returncode != 0
    assert re.search(r"\bstep 4\b.*--resume", stopped.stderr)
    assert (run / "checkpoints" / "latest").read_text().startswith("step_00000004 ")
    resumed = run_two_processes(WATCHED, tmp_path, 0, *command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    tensors, expected = tensors_in(run), tensors_in(by_two.run)
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    assert read_metrics(run) == read_metrics(by_two.run)


def test_an_evaluation_by_two_processes_is_that_of_one(by_two: TwoProcesses, pack: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pack, tmp_path / "data"))
    (data / "odd.txt").write_text("val_0000\ntrain_0003\nval_0002\ntrain_0001\nval_0001\n")
    command = ("-m", "exfuse", "evaluate", by_two.run / "model", data, "--split", "odd", "--flip")
    done = run_two_processes(*command, "-o", tmp_path / "two.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("odd: 5 images") == 1
    assert call_exfuse(*command[2:], "-o", tmp_path / "one.json").code == 0
    by_one = json.loads((tmp_path / "one.json").read_text())
    assert json.loads((tmp_path / "two.json").read_text()) == by_one
    assert sum(map(sum, by_one["confusion"])) > 4.5 * 144 * 192  # five images but for their ignored borders


@pytest.mark.parametrize("size", [2, 3, 4])
def test_n5_each_image_counts_once_in_the_shares_of_several_processes(
    size: int, by_two: TwoProcesses, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "all_reduce_sum", lambda counts, dist: counts)
    predictor = Predictor.from_pretrained(by_two.run / "model", engine="torch")
    dataset = open_dataset(pack, "train")

    def shard(rank: int, size: int) -> SplitScores:
        return score_split(predictor, dataset, DistContext(rank, size, torch.device("cpu")), Console(quiet=True))

    whole, shards = shard(0, 1), [shard(rank, size) for rank in range(size)]
    assert sum(scores.matrix.counts for scores in shards).tolist() == whole.matrix.counts.tolist()
    np.testing.assert_array_equal(sum(scores.per_image for scores in shards), whole.per_image)
    counted = [set(np.flatnonzero(scores.per_image.sum((1, 2)))) for scores in shards]
    assert sorted(index for images in counted for index in images) == list(range(12))


def assert_same_gradient(found: dict[str, Any], weights: str) -> None:
    whole = gradient_of(weights, 1, ALONE_HERE)
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)  # which is summed in float32
    assert max(map(abs, whole["gradient"])) > 0.01
    np.testing.assert_allclose(found["gradient"], whole["gradient"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gradient_accumulation", [2, 4, IMAGES])
def test_the_gradient_of_a_batch_in_pieces_is_that_of_the_whole(gradient_accumulation: int, weights: str) -> None:
    assert_same_gradient(gradient_of(weights, gradient_accumulation, ALONE_HERE), weights)


def test_the_gradient_of_a_batch_on_two_processes_is_that_of_the_whole(tmp_path: Path) -> None:
    done = run_two_processes(PIECEWISE, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for (weights, _), found in zip(CASES, first, strict=True):
        assert_same_gradient(found, weights)
