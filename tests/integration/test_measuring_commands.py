"""ablate, compare, submit, data prepare, and a training run that begins with a trained model."""

import csv
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

from exfuse.ablation import rows
from exfuse.data.datasets import open_dataset
from exfuse.distributed import DistContext, only_process
from exfuse.errors import ConfigError, OutputError
from exfuse.evaluation.bootstrap import mean_iou
from exfuse.evaluation.metrics import METRICS
from exfuse.inference import tta
from exfuse.models import backbones
from exfuse.models.backbones import resnet
from exfuse.models.semantic_supervision import SemanticSupervisionClassifier
from exfuse.models.storage.backbone_weights import CLASSIFIER_TYPE
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.outputs.folder import claim_folder
from exfuse.predictor import Predictor
from support.tiny_run import TINY, call_exfuse, tensors_in, tiny_config, train_quietly

ABLATION = (*TINY, "epochs=1", "model.name=gcn_tiny", "model.decoder_width=narrow", "seeds=1")


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


def test_a_model_against_itself_is_not_distinguishable(models: tuple[Path, Path], pack: Path, tmp_path: Path) -> None:
    outcome = call_exfuse("compare", models[0], models[0], pack, "-o", tmp_path / "comparison", "--show", "0")
    assert outcome.code == 0, outcome.errors
    assert "+0.00 points (+0.00 to +0.00), not distinguishable" in outcome.output
    assert [path.name for path in (tmp_path / "comparison").glob("[!.]*")] == ["comparison.json"]


def test_commands_that_run_alone_say_so_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only_process("exfuse compare") == DistContext(0, 1, torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"exfuse compare .*torchrun"):
        only_process("exfuse compare")


BASELINES = tuple(row for row in rows.PAPER if row.name in ("baseline", "wide baseline"))


def test_an_ablation_runs_every_cell_once(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAPER", BASELINES)
    command = ("ablate", "paper", *ABLATION, f"data.root={pack}", f"output={tmp_path / 'out'}")
    first = call_exfuse(*command)
    assert first.code == 0, first.errors
    assert "wide baseline, seed 0" in first.output
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert "exfuse ablate paper" in table
    cells = sorted((tmp_path / "out" / "trials").glob("*_0"))
    assert [cell.name for cell in cells] == ["baseline_0", "wide_baseline_0"]
    left = tensors_in(tmp_path / "out")
    record = json.loads((cells[0] / "trial.json").read_text())
    predictor = Predictor.from_pretrained(cells[0] / "model_last", "torch", "bf16")
    labels = predictor(open_dataset(pack, "val")[1].image).labels
    target = open_dataset(pack, "val")[1].mask
    assert sum(record["of_images"][1][0]) == int((labels == target)[target != 255].sum())
    assert f"{100 * float(mean_iou(np.array(record['of_images']).sum(axis=0))):.2f}" in table

    again = call_exfuse(*command)
    assert again.code == 0, again.errors
    assert (tmp_path / "out" / "ablation.md").read_text() == table
    after = tensors_in(tmp_path / "out")
    assert all(torch.equal(after[name], left[name]) for name in left)
    other = call_exfuse(*command, "batch_size=2")
    assert other.code == 1
    assert re.search(r"baseline_0: .*\bbatch_size\b", other.errors)

    moved = Path(shutil.copytree(pack, tmp_path / "other"))
    for split in ("val", "train"):
        whole = (moved / f"{split}.txt").read_text()
        (moved / f"{split}.txt").write_text("".join(whole.splitlines(keepends=True)[:2]))
        elsewhere = call_exfuse(*command, f"data.root={moved}")
        assert elsewhere.code == 1
        assert "other data" in elsewhere.errors
        (moved / f"{split}.txt").write_text(whole)
    recorded = (cells[0] / "trial.json").read_text()
    (cells[0] / "trial.json").write_text(json.dumps(record | {"backbone_sha256": "0" * 64}))
    retrained = call_exfuse(*command)
    assert retrained.code == 1
    assert "other backbone weights" in retrained.errors
    (cells[0] / "trial.json").write_text(recorded)

    (cells[1] / "trial.json").unlink()  # as if it had been cut off after its last checkpoint
    start = tmp_path / "out" / "trials" / "wide_baseline_0.json"
    started = start.read_text()
    start.write_text(json.dumps(json.loads(started) | {"backbone_sha256": "0" * 64}))
    assert re.search(r"wide_baseline_0\.json: .*backbone weights", call_exfuse(*command).errors)
    start.write_text(started)
    resumed = call_exfuse(*command)
    assert resumed.code == 0, resumed.errors
    assert (tmp_path / "out" / "ablation.md").read_text() == table
    (cells[1] / "trial.json").write_text("{")
    broken = call_exfuse(*command)
    assert broken.code == 1
    assert re.search(rf"{cells[1] / 'trial.json'}: .*record", broken.errors)


def narrow_rearranged() -> resnet.ResNet:
    return resnet.ResNet(resnet.BasicBlock, (2, 1, 1, 1), widths=(16, 32, 64, 128), stem_channels=16)


def narrow_backbones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Writes a backbone for each of the paper's starts and returns the options that name them."""
    monkeypatch.setitem(backbones.BACKBONES, "tiny_rearranged", narrow_rearranged)
    bodies = {"plain": resnet.tiny, "supervised": resnet.tiny, "rearranged": narrow_rearranged}
    bodies["rearranged_supervised"] = narrow_rearranged
    given = []
    for name, body in bodies.items():
        heads = (name.endswith("supervised"),) * 4
        description = {"model_type": CLASSIFIER_TYPE, "architecture": {"with_head": heads}}
        model = SemanticSupervisionClassifier(body(), 4, heads)
        save_pretrained(folder / name, model, description, card="")
        given.append(f"pretrained.{name}={folder / name}")
    return given


def test_the_backbone_of_the_last_row_is_looked_at_before_the_first_is_run(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = narrow_backbones(tmp_path, monkeypatch)
    given.append(f"pretrained.rearranged_supervised={tmp_path / 'supervised'}")
    outcome = call_exfuse("ablate", "paper", *ABLATION, f"data.root={pack}", *given, f"output={tmp_path / 'out'}")
    assert outcome.code == 1
    assert str(tmp_path / "supervised") in outcome.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly  # 23 runs
def test_every_row_of_the_ablation_is_run(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = narrow_backbones(tmp_path, monkeypatch)
    outcome = call_exfuse("ablate", "paper", *ABLATION, f"data.root={pack}", *given, f"output={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.errors
    table = list(csv.DictReader((tmp_path / "out" / "ablation.csv").read_text().splitlines()))
    assert [line["row"] for line in table] == [row.name for row in rows.PAPER]
    assert len(table) == 23
    assert [line["published mIoU"] for line in table][:2] == ["76.0", "77.5"]
    assert "left out" not in outcome.output
    cells = tmp_path / "out" / "trials"
    started = {path.stem: json.loads(path.read_text())["backbone_sha256"] for path in cells.glob("*_0.json")}
    assert started["ss_0"] == started["ss_heads_dropped_0"] != started["wide_baseline_0"]
    assert len(set(started.values())) == len(given)


HOLD_UNTIL_THERE = """
import sys, time
from pathlib import Path
from exfuse.atomic_io import file_lock
from exfuse.outputs.folder import claim_folder
path = Path(sys.argv[1])
with file_lock(path) if path.suffix == ".lock" else claim_folder(path, "exfuse train"):
    print("held", flush=True)
    end = time.monotonic() + 120
    while not Path(sys.argv[2]).exists() and time.monotonic() < end:
        time.sleep(0.05)
"""


def test_processes_share_the_cells_of_an_ablation(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAPER", BASELINES)
    cells = tmp_path / "out" / "trials"
    with claim_folder(tmp_path / "out", "exfuse ablate", shared=True):
        cells.mkdir()
    command = [sys.executable, "-c", HOLD_UNTIL_THERE, cells / ".baseline_0.lock", cells / "wide_baseline_0/trial.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        outcome = call_exfuse("ablate", "paper", *ABLATION, f"data.root={pack}", f"output={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.errors
    told = [line for line in outcome.output.splitlines() if ", seed 0" in line]
    assert told == ["wide baseline, seed 0", "baseline, seed 0"]
    assert (cells / "baseline_0" / "trial.json").is_file()
    assert (tmp_path / "out" / "ablation.md").is_file()


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
        with pytest.raises(OutputError, match=f"exfuse train .*{tmp_path / 'run'}"):
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
    assert "all as written" in whole.output
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
    assert "left: fc.weight" in outcome.output
    assert output.is_file()


def test_a_place_that_cannot_be_written_to_is_one_line(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = call_exfuse("train", "demo", *TINY, f"data.root={pack}", f"output={tmp_path / 'file' / 'run'}")
    assert outcome.code == 1
    assert str(tmp_path / "file" / "run") in outcome.errors
    assert "Traceback" not in outcome.errors
