"""A training run of a second, and what it leaves."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from exfuse.cli.app import main
from exfuse.evaluation.evaluate import EvaluationReport
from exfuse.training.config import TrainingConfig
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train

# Two epochs of three steps on a set of 12 images, each followed by an evaluation.
TINY = (
    "epochs=2",
    "batch_size=4",
    "evaluate_every=1",
    "checkpoint_every=2",
    "log_every=1",
    "data.crop_size=[64, 64]",
    "model.name=exfuse_tiny",
    "model.decoder_width=8",
    "model.gcn_kernel=3",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.003",
    "optimizer.warmup_steps=2",
)
STEPS = 6

# The same for a classifier, of three classes.
TINY_PRETRAINING = (
    "epochs=2",
    "batch_size=6",
    "evaluate_every=1",
    "checkpoint_every=2",
    "log_every=1",
    "precision=fp32",
    "data.crop_size=[64, 64]",
    "data.resize=64",
    "model.backbone=tiny",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.002",
    "optimizer.warmup_steps=2",
)


TIMES = ("seconds_per_step", "waiting")


def tiny_config(data: Path, output: Path, *overrides: str, recipe: str = "demo") -> TrainingConfig:
    return load_config(recipe, [*TINY, f"data.root={data}", f"output={output}", *overrides])


def train_quietly(config: TrainingConfig, resume: bool = False) -> EvaluationReport:
    return train(config, resume, Console(quiet=True))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Returns what metrics.jsonl holds but for the times, which differ from run to run."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def losses_of(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if record["kind"] == "train"]


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of all files below a folder."""
    return {
        f"{path.relative_to(folder)} {name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


class Outcome(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    output: str
    errors: str


def call_exfuse(*arguments: object, columns: int = 200) -> Outcome:
    """Runs the command line in this process, as if in a terminal of so many columns but with files for its output."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["exfuse", *map(str, arguments)]),
        mock.patch.dict("os.environ", {"COLUMNS": str(columns)}),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Outcome(code, output.getvalue(), errors.getvalue())


def assert_same_run(run: Path, expected: Path) -> None:
    # A checkpoint whose scoring was made up for has another name.
    tensors = {name.replace("_scored/", "/"): value for name, value in tensors_in(run).items()}
    expected_tensors = tensors_in(expected)
    assert tensors.keys() == expected_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected_tensors[name])] == []
    assert read_metrics(run) == read_metrics(expected)
    for model in ("model", "model_last"):
        assert (run / model / "config.json").read_text() == (expected / model / "config.json").read_text()


def read_scalars(run: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = events.Scalars(tag)
    assert len({scalar.step for scalar in scalars}) == len(scalars)
    return {scalar.step: scalar.value for scalar in scalars}
