"""Every recipe of the package takes two steps on drawn data, with its own network, loss, optimizer and schedule."""

import math
from pathlib import Path

import pytest
import yaml

from exfuse.ablation import rows
from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.inference.engines.openvino import best_precision
from exfuse.training.recipes import read_recipe_text, recipe_names
from support.tiny_run import call_exfuse, read_metrics

COMMANDS = {"segmentation": "train", "classification": "pretrain", "ablation": "ablate"}
TASKS = {name: yaml.safe_load(read_recipe_text(name))["task"] for name in recipe_names()}
SMALL = (
    "epochs=1", "evaluate_every=1", "log_every=1", "data.crop_size=[64, 64]", "data.workers=0",
    "optimizer.warmup_steps=1",
)  # fmt: skip


def test_there_are_as_many_recipes_as_we_know_of() -> None:
    assert len(TASKS) == 15
    assert sorted(TASKS.values()).count("segmentation") == 8
    assert sorted(TASKS.values()).count("classification") == 5
    assert sorted(TASKS.values()).count("ablation") == 2


# Networks that take a CPU a minute, and one that another recipe has as well.
NIGHTLY = {
    "camvid_resnet18_long", "imagenet_resnet50", "imagenet_resnext101", "imagenet_resnext101_rearranged",
    "imagenet_resnext131", "paper", "paper_voc", "voc_mixed", "voc_train", "voc_trainaug",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly if name in NIGHTLY else ()) for name in sorted(TASKS)],
)
def test_a_recipe_takes_two_steps(
    name: str, pack: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PAPER", rows.PAPER[:1])
    task, run = TASKS[name], tmp_path / "run"
    options = [*SMALL, f"output={run}"]
    if best_precision() == "fp32":
        options += ["precision=fp32"]  # without units for bf16 the large networks take minutes
    if task == "classification":
        options += [f"data.root={photos}", "batch_size=15", "data.resize=64"]
    else:
        options += [f"data.root={dataset_with_every_list(pack, tmp_path)}", "batch_size=6"]
    if task == "segmentation":
        options += ["model.weights=null"]
    outcome = call_exfuse(COMMANDS[task], name, *options, *(["seeds=1"] if task == "ablation" else []))
    assert outcome.code == 0, outcome.errors
    if task == "ablation":
        (run,) = (path for path in (run / "trials").iterdir() if path.is_dir())
    losses = [record["loss"] for record in read_metrics(run) if record["kind"] == "train"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def dataset_with_every_list(pack: Path, folder: Path) -> Path:
    """Returns a dataset file of the drawn scenes that has the splits of all recipes."""
    splits = {split: "val.txt" if split == "val" else "train.txt" for split in ("train", "val", "trainaug", "mixed")}
    path = folder / "scenes.yaml"
    content = {"root": str(pack), "format": "lists", "splits": splits, "names": list(SCENE_CLASSES.names)}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
