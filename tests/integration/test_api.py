"""The functions of the library: what the commands do, from a program."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import exfuse
from exfuse.errors import ConfigError, DataError
from exfuse.training.recipes import load_config, read_recipe_text

SMALL = {
    "model": {"name": "gcn_tiny", "decoder_width": 8},
    "epochs": 1,
    "batch_size": 4,
    "evaluate_every": 1,
    "data": {"crop_size": [64, 64]},
    "optimizer": {"warmup_steps": 1},
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def trained(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> "exfuse.training.api.TrainingResult":
    folder = tmp_path_factory.mktemp("api") / "run"
    nested = SMALL | {"data": SMALL["data"] | {"root": pack}}
    return exfuse.train("demo", output=folder, **nested)


def test_train_returns_the_run_the_model_and_its_scores(trained: "exfuse.training.api.TrainingResult") -> None:
    assert trained.folder.name == "run"
    assert trained.model == trained.folder / "model"
    assert (trained.folder / "report.html").is_file()
    assert 0 < trained.report.mean_iou < 1
    recorded = load_config(str(trained.folder / "config.yaml"))
    assert (recorded.epochs, recorded.model.name, recorded.data.crop_size) == (1, "gcn_tiny", (64, 64))


def test_evaluate_repeats_the_scores_of_the_training(
    trained: "exfuse.training.api.TrainingResult", pack: Path, tmp_path: Path
) -> None:
    report = exfuse.evaluate(trained.model, pack, metrics=["boundary_iou"])
    assert report.mean_iou == pytest.approx(trained.report.mean_iou, abs=1e-6)
    assert set(report.metrics) == {"boundary_iou"}
    assert report.protocol["model"] == str(trained.model)
    opened = exfuse.evaluate(exfuse.Predictor.from_pretrained(trained.model, "torch"), str(pack))
    assert (opened.matrix.counts == report.matrix.counts).all()
    flipped = exfuse.evaluate(trained.model, pack, scales=[1.0, 0.75], flip=True)
    assert (flipped.protocol["scales"], flipped.protocol["flip"]) == ([1.0, 0.75], True)
    with pytest.raises(ConfigError, match=r"'boundry_iou'.*boundary_iou"):
        exfuse.evaluate(trained.model, pack, metrics=["boundry_iou"])


def test_export_model_writes_what_a_predictor_opens(
    trained: "exfuse.training.api.TrainingResult", pack: Path, tmp_path: Path
) -> None:
    found = exfuse.export_model(trained.model, tmp_path / "onnx", "onnx", data=pack, limit=3)
    assert found["fp32"].images == 3
    assert json.loads((tmp_path / "onnx" / "export.json").read_text())["format"] == "onnx"
    dataset = exfuse.open_dataset(str(pack), "val")
    image = dataset[0].image
    exported, network = (exfuse.Predictor.from_pretrained(place) for place in (tmp_path / "onnx", trained.model))
    assert (exported(image).labels == network(image).labels).mean() > 0.999
    with pytest.raises(ConfigError, match="int8"):
        exfuse.export_model(trained.model, tmp_path / "int8", "openvino", "int8")
    with pytest.raises(ConfigError, match="data and images"):
        exfuse.export_model(trained.model, tmp_path / "two", "onnx", data=pack, images=pack)
    with pytest.raises(ConfigError, match=r"'onx'.*onnx"):
        exfuse.export_model(trained.model, tmp_path / "three", "onx")


def test_a_recipe_may_be_a_path_or_keys_and_values(tmp_path: Path) -> None:
    content = yaml.safe_load(read_recipe_text("demo"))
    expected = load_config("demo", ["epochs=3", "data.root=photos", "output=here"])
    changes = {"epochs": 3, "data": {"root": "photos"}, "output": "here"}
    assert load_config("demo", changes) == expected
    assert load_config(content, changes) == expected
    assert load_config(content, {"epochs": 3, "data.root": "photos", "output": Path("here")}) == expected
    assert content == yaml.safe_load(read_recipe_text("demo")), "the caller's dictionary stays as it is"
    del content["output"]
    assert load_config(content).output == Path("runs/unnamed")
    with pytest.raises(ConfigError, match=r"'epoch'.*'epochs'"):
        load_config(content, {"epoch": 3, "output": "here"})
    with pytest.raises(ConfigError, match=r"'dta'.*data"):
        load_config("demo", {"dta": {"root": "photos"}})
    with pytest.raises(ConfigError, match="recipe 'dmo'"):
        exfuse.train("dmo")
    with pytest.raises(DataError, match="gone"):
        exfuse.train("demo", output=tmp_path / "run", data={"root": tmp_path / "gone"})


def test_a_prediction_is_saved_as_users_save_it(
    trained: "exfuse.training.api.TrainingResult", pack: Path, tmp_path: Path
) -> None:
    predictor = exfuse.Predictor.from_pretrained(trained.model)
    images = [entry.image for entry in exfuse.open_dataset(pack, "val").entries[:3]]
    for path, prediction in zip(images, predictor(images), strict=True):
        prediction.mask().save(tmp_path / f"{path.stem}.png")
        with Image.open(tmp_path / f"{path.stem}.png") as stored:
            np.testing.assert_array_equal(np.asarray(stored), predictor(path).labels)
