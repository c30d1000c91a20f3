"""compare, submit, data prepare, and a training run that begins with a trained model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from exfuse.data.datasets import open_dataset
from exfuse.distributed import DistContext, only_process
from exfuse.errors import ConfigError, OutputError
from exfuse.evaluation.metrics import METRICS
from exfuse.inference import tta
from exfuse.models.backbones import resnet
from exfuse.predictor import Predictor
from support.holding import HOLD_UNTIL_THERE
from support.tiny_run import TINY, call_exfuse, tiny_config, train_quietly


@pytest.fixture(scope="module")
def models(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two model folders, the second trained longer."""
    folder = tmp_path_factory.mktemp("models")
    for name, epochs in (("short", 1), ("long", 4)):
        train_quietly(tiny_config(pack, folder / name, f"epochs={epochs}"))
    return folder / "short" / "model_last", folder / "long" / "model_last"


def test_evaluate_gives_an_interval_and_every_further_measure(
    models: tuple[Path, Path], pack: Path, tmp_path: Path
) -> None:
    outcome = call_exfuse("evaluate", models[1], pack, "--metrics", "all", "-o", tmp_path / "scores.json")
    assert outcome.code == 0, outcome.errors
    content = json.loads((tmp_path / "scores.json").read_text())
    interval = content["mean_iou_interval"]
    assert interval["low"] <= content["mean_iou"] <= interval["high"]
    assert set(content["metrics"]) == set(METRICS)
    assert 0 < content["metrics"]["boundary_iou"]["mean"] < content["mean_iou"]
    assert 0 < content["metrics"]["calibration"]["expected_calibration_error"] < 1
    for text in ("95 % interval of the mean", "boundary_iou mean", "object_size mean_iou_by_size small"):
        assert text in outcome.output
    refused = call_exfuse("evaluate", models[1], pack, "--metrics", "boundary")
    assert refused.code == 1
    assert re.search("metric 'boundary'.*'boundary_iou'", refused.errors)


def test_calibration_is_that_of_the_averaged_probabilities_too(models: tuple[Path, Path], pack: Path) -> None:
    image = open_dataset(pack, "val")[0].image
    single = Predictor.from_pretrained(models[1], engine="torch")
    probabilities = single.probabilities(image)
    prediction = single(image, confidence=True)
    np.testing.assert_allclose(prediction.confidence, probabilities.max(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(prediction.labels, single(image).labels)
    for scales, flip in (((1.0,), True), ((0.75,), False)):
        other = Predictor.from_pretrained(models[1], augmentation=tta.TestTimeAugmentation(scales, flip))
        ema_model = other(image, confidence=True)
        np.testing.assert_array_equal(ema_model.confidence, other.probabilities(image).max(axis=0))


def test_compare_pairs_two_models_on_the_same_images(models: tuple[Path, Path], pack: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison"
    outcome = call_exfuse("compare", *models, pack, "-o", output, "--show", "2")
    assert outcome.code == 0, outcome.errors
    content = json.loads((output / "comparison.json").read_text())
    for place, model in zip(("first", "second"), models, strict=True):
        scores = tmp_path / f"{place}.json"
        assert call_exfuse("evaluate", model, pack, "-o", scores).code == 0
        assert content["mean_iou"][place] == pytest.approx(json.loads(scores.read_text())["mean_iou"])
    gaps = [abs(image["second"] - image["first"]) for image in content["images"]]
    assert gaps == sorted(gaps, reverse=True)
    assert len(gaps) == 4
    (output / "00_beach.jpg").touch()
    assert call_exfuse("compare", *models, pack, "-o", output, "--show", "4").code == 0
    assert call_exfuse("compare", *models, pack, "-o", output, "--show", "2").code == 0
    assert (output / "00_beach.jpg").exists()
    pictures = sorted((output / "images").glob("*.jpg"))
    assert [path.name for path in pictures] == [
        f"{place:02d}_{image['name']}.jpg" for place, image in enumerate(content["images"][:2])
    ]
    with Image.open(pictures[0]) as picture:
        height, width = open_dataset(pack, "val")[0].mask.shape
        assert picture.size == (4 * width, height)
    assert "points (" in outcome.output


def test_compare_draws_images_of_the_longest_name_that_there_can_be(
    models: tuple[Path, Path], pack: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(pack, tmp_path / "data"))
    name = "x" * 251
    (data / "images" / "val_0000.jpg").rename(data / "images" / f"{name}.jpg")
    (data / "masks" / "val_0000.png").rename(data / "masks" / f"{name}.png")
    (data / "val.txt").write_text(f"{name}\n")
    outcome = call_exfuse("compare", models[0], models[0], data, "-o", tmp_path / "comparison")
    assert outcome.code == 0, outcome.errors
    assert len(list((tmp_path / "comparison" / "images").glob("00_xxx*.jpg"))) == 1


def test_predict_refuses_a_name_that_gets_too_long_before_it_opens_the_model(tmp_path: Path) -> None:
    images = [tmp_path / folder / f"{'x' * 251}.png" for folder in ("a", "b")]
    for path in images:
        path.parent.mkdir()
        Image.new("RGB", (64, 64)).save(path)
    outcome = call_exfuse(
        "predict", tmp_path / "no_model", *images, "-o", tmp_path / "out"
    )  # the second becomes x..._2
    assert outcome.code == 1
    assert f"{tmp_path / 'out' / 'masks' / ('x' * 251)}_2.png" in outcome.errors
    assert not (tmp_path / "out").exists()


def test_a_model_against_itself_is_not_distinguishable(models: tuple[Path, Path], pack: Path, tmp_path: Path) -> None:
    outcome = call_exfuse("compare", models[0], models[0], pack, "-o", tmp_path / "comparison", "--show", "0")
    assert outcome.code == 0, outcome.errors
    assert re.search(r"\+0\.00 .*\(\+0\.00 to \+0\.00\).*not distinguishable", outcome.output)
    assert [path.name for path in (tmp_path / "comparison").glob("[!.]*")] == ["comparison.json"]


def test_commands_that_run_alone_say_so_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only_process("exfuse compare") == DistContext(0, 1, torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"exfuse compare .*torchrun"):
        only_process("exfuse compare")


def test_names_that_look_like_markup_are_printed_as_they_are(pack: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pack, tmp_path / "data"))
    content = json.loads((data / "classes.json").read_text())
    for row, name in zip(content["classes"], ("[/b]", "[final]"), strict=False):
        row["name"] = name
    (data / "classes.json").write_text(json.dumps(content))
    for command in (
        ("train", "demo", *TINY, "epochs=1", f"data.root={data}", f"output={tmp_path / 'run'}"),
        ("evaluate", tmp_path / "run" / "model", data, "-o", tmp_path / "scores.json"),
    ):
        outcome = call_exfuse(*command)
        assert outcome.code == 0, outcome.errors
        assert "[/b]" in outcome.output
        assert "[final]" in outcome.output
    (data / "masks" / "[red]x.png").write_bytes(b"")
    with (data / "val.txt").open("a") as file:
        file.write("[/red]x\n")
    sick = call_exfuse("doctor", data)
    assert sick.code == 1
    assert "[/red]x" in sick.output


def test_a_folder_in_which_another_process_trains_is_refused(pack: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_UNTIL_THERE, tmp_path / "run", tmp_path / "done"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"{tmp_path / 'run'}: .*exfuse train"):
            train_quietly(tiny_config(pack, tmp_path / "run"))
        (tmp_path / "done").touch()
    train_quietly(tiny_config(pack, tmp_path / "run"))


def test_a_run_can_begin_with_a_trained_model(models: tuple[Path, Path], pack: Path, tmp_path: Path) -> None:
    still = ("optimizer.learning_rate=1e-12", "optimizer.weight_decay=0", "ema_decay=0", "epochs=1")
    train_quietly(tiny_config(pack, tmp_path / "on", f"model.weights={models[1]}", *still))
    given = load_file(models[1] / "model.safetensors")
    left = load_file(tmp_path / "on" / "model_last" / "model.safetensors")
    kernels = [name for name in given if given[name].ndim == 4]
    assert len(kernels) > 20
    for name in kernels:
        torch.testing.assert_close(left[name], given[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("model.gcn_kernel=5", r"exfuse_tiny .*'gcn_kernel': 3.*'gcn_kernel': 5"),
        ("model.name=gcn_tiny", r"exfuse_tiny .*gcn_tiny "),
        ("data.root=OTHER", r"classes \(ground"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    override: str, facts: str, models: tuple[Path, Path], pack: Path, tmp_path: Path
) -> None:
    if override.endswith("OTHER"):
        names = [f"class {index}" for index in range(7)]
        (tmp_path / "other.yaml").write_text(
            f"root: {pack}\nformat: lists\nsplits: {{train: train.txt, val: val.txt}}\nnames: {json.dumps(names)}\n"
        )
        override = f"data.root={tmp_path / 'other.yaml'}"
    with pytest.raises(ConfigError) as caught:
        train_quietly(tiny_config(pack, tmp_path / "run", f"model.weights={models[0]}", override))
    assert re.search(rf"^model\.weights: {models[0]} .*{facts}", str(caught.value))


def test_the_three_stages_run_from_the_archives_to_a_submission(
    voc: Path, sbd: Path, coco: Path, tmp_path: Path
) -> None:
    output = tmp_path / "all"
    for source, folder, options in (
        ("voc", voc, ["--partial"]),
        ("sbd", sbd, ["--partial"]),
        ("coco", coco, ["--splits", "train2017", "--partial"]),
    ):
        outcome = call_exfuse("data", "prepare", source, folder, "-o", output, *options)
        assert outcome.code == 0, outcome.errors
    assert "val images in mixed" in outcome.output
    previous: list[str] = []
    for stage in ("voc_mixed", "voc_trainaug", "voc_train"):
        small = ("batch_size=1", "gradient_accumulation=1", "data.crop_size=[64, 64]", "model.name=exfuse_tiny",
                 "epochs=1", "model.gcn_kernel=3", "model.decoder_width=narrow", "model.decoder=stride4",
                 "data.workers=0", "optimizer.warmup_steps=1", "model.backbone_weights=null",
                 "precision=fp32")  # fmt: skip
        run = tmp_path / stage
        outcome = call_exfuse("train", stage, *small, f"data.root={output}", f"output={run}", *previous)
        assert outcome.code == 0, outcome.errors
        previous = [f"model.weights={run}/model_last"]
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2009_99\n")
    archive = tmp_path / "results.tgz"
    outcome = call_exfuse("submit", "voc", run / "model", voc, "-o", archive)
    assert outcome.code == 0, outcome.errors
    assert "1 masks, checked" in outcome.output
    assert archive.is_file()


def test_the_doctor_says_what_is_wrong_and_exits_with_one(pack: Path, tmp_path: Path) -> None:
    clean = call_exfuse("doctor", pack, "-o", tmp_path / "clean.json")
    assert clean.code == 0, clean.errors
    assert "train: 12 images, 0 errors" in clean.output
    assert [split["split"] for split in json.loads((tmp_path / "clean.json").read_text())["splits"]] == ["train", "val"]
    data = Path(shutil.copytree(pack, tmp_path / "data"))
    with Image.open(data / "masks" / "val_0001.png") as mask:
        mask.convert("RGB").save(data / "masks" / "val_0001.png")
    sick = call_exfuse("doctor", data, "--splits", "val")
    assert sick.code == 1
    assert "val: 4 images, 1 errors" in sick.output
    assert "val_0001.png" in sick.output


def test_checkpoint_verify_finds_a_changed_byte(pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_quietly(tiny_config(pack, run, "epochs=1"))
    whole = call_exfuse("checkpoint", "verify", run)
    assert whole.code == 0, whole.errors
    assert "all unchanged" in whole.output
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    assert call_exfuse("checkpoint", "verify", checkpoint).code == 0
    path = checkpoint / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    damaged = call_exfuse("checkpoint", "verify", run)
    assert damaged.code == 1
    assert str(path) in damaged.errors


def test_weights_import_says_what_it_took(tmp_path: Path) -> None:
    torch.save(resnet.tiny().state_dict() | {"fc.weight": torch.zeros(5, 128)}, tmp_path / "weights.pth")
    output = tmp_path / "out.safetensors"
    outcome = call_exfuse("weights", "import", tmp_path / "weights.pth", "--backbone", "tiny", "-o", output)
    assert outcome.code == 0, outcome.errors
    assert "ignored: fc.weight" in outcome.output
    assert output.is_file()


def test_a_place_that_cannot_be_written_to_is_one_line(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = call_exfuse("train", "demo", *TINY, f"data.root={pack}", f"output={tmp_path / 'file' / 'run'}")
    assert outcome.code == 1
    assert str(tmp_path / "file" / "run") in outcome.errors
    assert "Traceback" not in outcome.errors
