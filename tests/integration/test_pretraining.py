"""Pre-training a backbone, going on after an interruption, and a segmentation run that begins with what it leaves."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from exfuse.data.image_folder import central_view, open_image_folder
from exfuse.distributed import DistContext
from exfuse.errors import ConfigError, DataError
from exfuse.models.backbones import resnet
from exfuse.models.preprocessing import normalize
from exfuse.models.semantic_supervision import SemanticSupervisionClassifier
from exfuse.training.classification import count_correct, pretrain
from exfuse.training.log import RunLog
from exfuse.training.recipes import load_pretraining_config
from exfuse.training.signals import Interrupted
from support.tiny_run import TINY, TINY_PRETRAINING, call_exfuse, read_metrics, tensors_in
from support.two_processes import run_two_processes

STEPS = 10


@pytest.fixture(scope="module")
def pretrained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run folder of a whole run that nothing disturbed; not to be changed."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    outcome = call_exfuse("pretrain", "imagenette_resnet18", *TINY_PRETRAINING, f"data.root={photos}", f"output={run}")
    assert outcome.code == 0, outcome.errors
    for text in ("res2", "res3", "res4", "res5", "final", "top-1", "top-5", f"{run}/backbone"):
        assert text in outcome.output
    return run


def test_a_run_leaves_records_and_the_best_and_the_last_classifier(pretrained: Path) -> None:
    records = read_metrics(pretrained)
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, STEPS + 1))
    scored = [record for record in records if record["kind"] == "val"]
    assert [record["step"] for record in scored] == [5, 10]
    assert {"res2_top1", "res5_top5", "final_top1", "final_top5"} <= set(scored[0])
    assert scored[-1]["final_top5"] == 1.0  # there are only three classes
    best = max(scored, key=lambda record: record["final_top1"])
    config = json.loads((pretrained / "backbone" / "config.json").read_text())
    assert config["metrics"]["heads"][-1]["top1"] == pytest.approx(best["final_top1"])
    assert config["id2label"] == {"0": "bars", "1": "dots", "2": "plain"}
    assert (pretrained / "backbone_last" / "model.safetensors").is_file()
    assert "| final |" in (pretrained / "backbone" / "README.md").read_text()


def test_the_accuracies_are_those_of_the_model_that_is_left(pretrained: Path, photos: Path) -> None:
    config = json.loads((pretrained / "backbone" / "config.json").read_text())
    recipe = load_pretraining_config(str(pretrained / "config.yaml"))
    model = SemanticSupervisionClassifier(resnet.tiny(), 3).eval()
    model.load_state_dict(load_file(pretrained / "backbone" / "model.safetensors"))
    val = open_image_folder(photos, "val")
    right = np.zeros(5)
    for index in range(len(val)):
        view = torch.from_numpy(central_view(val[index].image, 64, (64, 64)).copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            output = model(normalize(view, recipe.data.image_mean, recipe.data.image_std))
        right += [int(scores.argmax()) == val[index].label for scores in (*output.auxiliary_logits, output.logits)]
    assert [row["top1"] for row in config["metrics"]["heads"]] == pytest.approx((right / 9).tolist())


def test_every_rank_counts_its_own_share(pretrained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_pretraining_config(str(pretrained / "config.yaml"))
    model = SemanticSupervisionClassifier(resnet.tiny(), 3)
    val, cpu = open_image_folder(photos, "val"), torch.device("cpu")
    together = count_correct(model, val, recipe, DistContext(0, 1, cpu))
    monkeypatch.setattr("exfuse.training.classification.all_reduce_sum", lambda values, dist: values)
    shards = [count_correct(model, val, recipe, DistContext(rank, 2, cpu)) for rank in (0, 1)]
    for head, first, second in zip(together, *shards, strict=True):
        assert head.top1 == pytest.approx(first.top1 + second.top1)
    assert model.training


def test_an_interrupted_run_resumes_to_the_bit(
    pretrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_pretraining_config(
        "imagenette_resnet18", [*TINY_PRETRAINING, f"data.root={photos}", f"output={tmp_path / 'run'}"]
    )
    advance = RunLog.advance

    def advance_and_stop(log: RunLog, status: str) -> None:
        advance(log, status)
        if (config.output / "checkpoints" / "latest").exists():
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "advance", advance_and_stop)
        with pytest.raises(Interrupted):
            pretrain(config, False, Console(quiet=True))
    pretrain(config, True, Console(quiet=True))
    tensors, expected = tensors_in(config.output), tensors_in(pretrained)
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    assert read_metrics(config.output) == read_metrics(pretrained)


def test_a_run_from_before_heads_had_a_hidden_layer_goes_on_without_one(photos: Path, tmp_path: Path) -> None:
    config = load_pretraining_config(
        "imagenette_resnet18",
        [
            *TINY_PRETRAINING,
            "epochs=1",
            "model.head_hidden_width=0",
            f"data.root={photos}",
            f"output={tmp_path / 'run'}",
        ],
    )
    pretrain(config, False, Console(quiet=True))
    record = config.output / "config.yaml"
    content = yaml.safe_load(record.read_text())
    assert content["model"].pop("head_hidden_width") == 0
    record.write_text(yaml.safe_dump(content))
    pretrain(config, True, Console(quiet=True))
    usual = config.model_copy(update={"model": config.model.model_copy(update={"head_hidden_width": 512})})
    with pytest.raises(ConfigError, match=r"model\.head_hidden_width=0 \(now 512\)"):
        pretrain(usual, True, Console(quiet=True))


def test_two_processes_pretrain_as_one(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_two_processes(
        "-m",
        "exfuse",
        "pretrain",
        "imagenette_resnet18",
        *TINY_PRETRAINING,
        "epochs=1",
        f"data.root={photos}",
        f"output={run}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best on val") == 1
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("supervised", [False, True])
def test_a_segmentation_run_begins_with_the_pretrained_backbone(
    supervised: bool, pretrained: Path, pack: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = call_exfuse(
        "train", "demo", *TINY, "epochs=1", f"data.root={pack}", f"output={run}",
        "optimizer.learning_rate=1e-12", "optimizer.weight_decay=0", "ema_decay=0", "model.auxiliary_prediction=null",
        f"model.backbone_weights={pretrained}/backbone", f"model.supervised_features={str(supervised).lower()}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.errors
    assert "data.image_mean=[0.485, 0.456, 0.406]" in outcome.output
    given = load_file(pretrained / "backbone" / "model.safetensors")
    left = load_file(run / "model_last" / "model.safetensors")
    kernels = {name for name in left if name.startswith("backbone.") and left[name].ndim == 4}
    assert any(name.startswith("backbone.heads.") for name in kernels) is supervised
    for name in kernels:
        source = name if supervised else name.replace("backbone.", "backbone.body.")
        torch.testing.assert_close(left[name], given[source], rtol=0, atol=1e-8)
    assert call_exfuse("evaluate", run / "model", pack, "-o", tmp_path / "scores.json").code == 0


def test_bad_input_is_refused_before_training(photos: Path, tmp_path: Path) -> None:
    def refusal(*overrides: str) -> str:
        config = load_pretraining_config(
            "imagenette_resnet18", [*TINY_PRETRAINING, f"output={tmp_path / 'run'}", *overrides]
        )
        with pytest.raises((ConfigError, DataError)) as caught:
            pretrain(config, False, Console(quiet=True))
        return str(caught.value)

    assert re.search(r"^data\.root .*data\.root=FOLDER", refusal())
    assert re.search("'resnet-18'.*'resnet18'", refusal(f"data.root={photos}", "model.backbone=resnet-18"))
    assert f"{photos}/test: " in refusal(f"data.root={photos}", "data.val_split=test")
    shutil.copytree(photos, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "train" / "bars")
    assert re.search(r"/other: .*\bbars$", refusal(f"data.root={tmp_path / 'other'}"))
    assert not (tmp_path / "run").exists()
