"""`exfuse export`, and what is done with what it wrote."""

import json
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exfuse
from exfuse.atomic_io import digest_of
from exfuse.data.datasets import open_dataset
from exfuse.errors import CheckpointError, ExportError, OutputError
from exfuse.export import quantize, verify
from exfuse.export.write import check_request
from exfuse.inference.engines.openvino import best_precision
from exfuse.manifest import MANIFEST, write_manifest
from exfuse.predictor import Predictor
from support.tiny_run import call_exfuse, tiny_config, train_quietly

HAS_BF16 = best_precision() == "bf16"
FORMATS = {"torch-export": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}


@pytest.fixture(scope="module")
def model(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    train_quietly(tiny_config(pack, run, "model.name=gcn_tiny"))  # small, so that tracing it takes little
    return run / "model"


@pytest.fixture(scope="module")
def exported(model: Path, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each format; not to be changed."""
    folder, folders = tmp_path_factory.mktemp("exported"), {}
    for name in FORMATS:
        folders[name] = folder / name
        outcome = call_exfuse("export", model, "--format", name, "-o", folders[name], "--data", pack)
        assert outcome.code == 0, outcome.errors
        assert "labels equal" in outcome.output
        assert "mean IoU" in outcome.output
    return folders


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_says_what_it_is_and_how_it_was_checked(exported: dict[str, Path], model: Path, name: str) -> None:
    content = json.loads((exported[name] / "export.json").read_text())
    assert (exported[name] / FORMATS[name]).is_file()
    assert content["model"] == json.loads((model / "config.json").read_text())
    assert list(content["checked"]) == (["fp32", "bf16"] if name == "openvino" and HAS_BF16 else ["fp32"])
    checked = content["checked"]["fp32"]
    assert checked["images"] == 4
    assert checked["logit_error"] < 1e-4
    assert checked["labels_equal_outside_ties"] == 1
    assert checked["mean_iou_of_export"] == pytest.approx(checked["mean_iou_of_network"], abs=1e-3)
    assert not list(exported[name].parent.glob(".*"))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("by_file", [False, True])
def test_commands_take_an_export_where_they_take_a_model(
    exported: dict[str, Path], model: Path, pack: Path, name: str, by_file: bool, tmp_path: Path
) -> None:
    source = exported[name] / FORMATS[name] if by_file else exported[name]
    for used, target in ((source, "export.json"), (model, "model.json")):
        outcome = call_exfuse("evaluate", used, pack, "--precision", "fp32", "-o", tmp_path / target)
        assert outcome.code == 0, outcome.errors
    scores = [json.loads((tmp_path / target).read_text()) for target in ("export.json", "model.json")]
    assert scores[0]["mean_iou"] == pytest.approx(scores[1]["mean_iou"], abs=1e-3)
    assert scores[0]["protocol"]["engine"] == ("openvino" if name == "openvino" else "onnxruntime")
    outcome = call_exfuse("predict", source, pack, "-o", tmp_path / "out", "--precision", "fp32")
    assert outcome.code == 0, outcome.errors
    assert f"(engine {scores[0]['protocol']['engine']}, fp32)" in outcome.output
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == 16


WITHOUT_TORCH = """
import sys
of_the_command = ("typer", "rich", "yaml", "pydantic")
for module in ("torch", "cv2", "safetensors", "huggingface_hub", "matplotlib", "tensorboard", *of_the_command):
    sys.modules[module] = None
import numpy as np
import exfuse
prediction = exfuse.Predictor.from_pretrained(sys.argv[1], precision="fp32")(sys.argv[2])
np.save(sys.argv[3], prediction.labels)
for module in of_the_command:
    del sys.modules[module]
from exfuse.cli.app import main
sys.argv = ["exfuse", "predict", sys.argv[1], sys.argv[2], "-o", sys.argv[4], "--precision", "fp32"]
main()
"""


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_an_export_is_used_without_torch(
    exported: dict[str, Path], model: Path, pack: Path, name: str, tmp_path: Path
) -> None:
    photo = open_dataset(pack, "val").entries[0].image
    command = [sys.executable, "-c", WITHOUT_TORCH, exported[name], photo, tmp_path / "labels.npy", tmp_path / "out"]
    subprocess.run(command, check=True, timeout=60)
    expected, labels = Predictor.from_pretrained(model, "torch")(photo).labels, np.load(tmp_path / "labels.npy")
    assert (labels == expected).mean() > 0.999
    with Image.open(tmp_path / "out" / "masks" / f"{photo.stem}.png") as mask:
        np.testing.assert_array_equal(np.array(mask), labels)


def test_an_export_whose_scores_are_not_finite_fails_its_check(model: Path, pack: Path) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            return getattr(network, name)

        def scores(self, images: np.ndarray) -> np.ndarray:
            scores = network.scores(images)
            scores[0, 0, 3, 4] = np.nan
            return scores

    predictor = Predictor.from_pretrained(model, "torch")
    network = predictor.engine
    with pytest.raises(ExportError, match=r"scores .*finite"):
        verify.compare_engines(network, Broken(), [open_dataset(pack, "val")[0]], predictor.info)


def test_an_export_that_fails_its_check_leaves_nothing_and_the_older_one_stays(
    model: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "export"
    output.mkdir()
    (output / "export.json").write_text("an older export")
    write_manifest(output, {"export.json": digest_of(output / "export.json")})
    older = {path: path.read_bytes() for path in output.iterdir()}
    monkeypatch.setitem(verify.TOLERANCES, "fp32", verify.Tolerances(0.0, 2.0, 0.0))
    outcome = call_exfuse("export", model, "--format", "onnx", "-o", output, "--data", pack)
    assert outcome.code == 1
    assert re.search(rf"^error: {output}: .*\bonnx\b.*\bfp32\b", outcome.errors)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert {path: path.read_bytes() for path in output.iterdir()} == older


@pytest.mark.skipif(not HAS_BF16, reason="the processor has no units for bf16, so that fp32 is what everybody gets")
def test_an_export_is_checked_in_the_precision_it_is_opened_in(
    model: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verify.TOLERANCES, "bf16", verify.Tolerances(0.0, 0.0, 0.0))
    outcome = call_exfuse("export", model, "--format", "openvino", "-o", tmp_path / "export", "--data", pack)
    assert outcome.code == 1
    assert re.search(rf"^error: {tmp_path / 'export'}: .*\bopenvino\b.*\bbf16\b", outcome.errors)
    assert not (tmp_path / "export").exists()


def test_int8_holds_the_score(model: Path, pack: Path, tmp_path: Path) -> None:
    outcome = call_exfuse(
        "export", model, "--format", "openvino", "--precision", "int8", "-o", tmp_path / "int8", "--data", pack
    )
    assert outcome.code == 0, outcome.errors
    checked = json.loads((tmp_path / "int8" / "export.json").read_text())["checked"]["int8"]
    assert checked["mean_iou_of_export"] >= 0.99 * checked["mean_iou_of_network"]
    assert 0 < checked["logit_error"] < 1
    assert Predictor.from_pretrained(tmp_path / "int8").engine.precision == "int8"
    content = (tmp_path / "int8" / "model.xml").read_text()
    assert "FakeQuantize" in content
    assert '"precise"' in content, "the scores are still interpolated in float32"


def quantize_for(limit: float, path: Path, images: list[np.ndarray]) -> tuple[int, float]:
    """Makes a file int8, held to so much; returns how many places are quantized, and the share of equal labels.

    For a process of its own; two groups of operations go back at most.
    """
    before = Predictor.from_pretrained(path, precision="fp32")
    pairs = [(image[None], before(image).labels) for image in images]
    verify.TOLERANCES["int8"] = verify.TOLERANCES["int8"]._replace(mean_iou=limit)
    quantize.MOST_GROUPS = 2
    quantize._quantize(path, pairs, labelled=False)
    write_manifest(path.parent, {file.name: digest_of(file) for file in path.parent.iterdir() if file.name != MANIFEST})
    after = Predictor.from_pretrained(path)
    equal = [(after(image[0]).labels == labels).mean() for image, labels in pairs]
    return path.read_text().count('type="FakeQuantize"'), float(np.mean(equal))


@pytest.mark.nightly
def test_operations_that_int8_hurts_go_back(exported: dict[str, Path], pack: Path, tmp_path: Path) -> None:
    dataset = open_dataset(pack, "train")
    images = [dataset[index].image for index in range(3)]
    places, equal = [], []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for limit in (0.0, 1.0):
            shutil.copytree(exported["openvino"], tmp_path / str(limit))
            path = tmp_path / str(limit) / "model.xml"
            found = pool.submit(quantize_for, limit, path, images).result()
            places.append(found[0])
            equal.append(found[1])
    assert places[1] < places[0]
    assert min(equal) > 0.98


def test_images_without_labels_or_none_at_all_check_an_export_too(model: Path, pack: Path, tmp_path: Path) -> None:
    for options in ((), ("--images", pack, "--limit", "3")):
        outcome = call_exfuse("export", model, "--format", "torch-export", "-o", tmp_path / "export", *options)
        assert outcome.code == 0, outcome.errors
        assert "mean IoU" not in outcome.output
        assert ("drawn scenes" in outcome.output) == (not options)
        checked = json.loads((tmp_path / "export" / "export.json").read_text())["checked"]["fp32"]
        assert checked["images"] == (3 if options else 8)
        assert checked["mean_iou_of_export"] is None


def test_an_export_takes_the_place_of_an_older_one_only(model: Path, pack: Path, tmp_path: Path) -> None:
    command = ("export", model, "--format", "onnx", "--data", pack, "--limit", "1", "-o")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "model.onnx").touch()
    for output in (model, tmp_path / "photos", tmp_path / "model.onnx"):
        before = sorted(tmp_path.rglob("*"))
        outcome = call_exfuse(*command, output)
        assert outcome.code == 1
        assert outcome.errors.startswith(f"error: {output} ")
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "export").mkdir()
    for _ in range(2):
        assert call_exfuse(*command, tmp_path / "export").code == 0


def test_images_that_a_program_does_not_take_are_left_out_of_its_check(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for side in (20, 32, 33, 64):
        Image.new("RGB", (70, side)).save(tmp_path / "images" / f"{side}.png")
    found = exfuse.export_model(model, tmp_path / "export", "torch-export", images=tmp_path / "images")
    assert found["fp32"].images == 2


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (Path(), tmp_path, tmp_path / "link", Path("/proc")):
        with pytest.raises(OutputError, match=rf"^{re.escape(str(place))} .*replaced"):
            check_request(place, "onnx", "fp32")


def test_a_data_set_may_ignore_another_label_than_the_model(model: Path, own_pack: Path, tmp_path: Path) -> None:
    content = json.loads((own_pack / "classes.json").read_text())
    (own_pack / "classes.json").write_text(json.dumps(content | {"ignore_index": 200}))
    for path in (own_pack / "masks").glob("*.png"):
        with Image.open(path) as stored:
            mask = np.array(stored)
        Image.fromarray(np.where(mask == 255, 200, mask).astype(np.uint8)).save(path)
    outcome = call_exfuse("export", model, "--format", "onnx", "--data", own_pack, "-o", tmp_path / "export")
    assert outcome.code == 0, outcome.errors
    assert "mean IoU" in outcome.output


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--format", "onnx", "--precision", "int8", "--images", "PACK"), "int8 .*openvino .*onnx"),
        (("--format", "openvino", "--precision", "int8"), "int8.*data or images"),
        (("--format", "openvino", "--data", "PACK", "--images", "PACK"), "^error: data and images "),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[str, ...], facts: str, model: Path, pack: Path, tmp_path: Path
) -> None:
    given = [str(pack) if option == "PACK" else option for option in options]
    outcome = call_exfuse("export", model, "-o", tmp_path / "export", *given)
    assert outcome.code == 1
    assert re.search(facts, outcome.errors)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("damage", ["cut", "other", "empty", "foreign"])
def test_what_the_engine_cannot_read_is_named(
    exported: dict[str, Path], name: str, damage: str, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(exported[name], tmp_path / "export")) / FORMATS[name]
    content = path.read_bytes()
    contents = {"cut": content[: len(content) // 2], "other": b"no model at all", "empty": b""}
    contents["foreign"] = content.replace(b"id2label", b"id2labor")
    path.write_bytes(contents[damage])
    write_manifest(path.parent, {file.name: digest_of(file) for file in path.parent.iterdir() if file.name != MANIFEST})
    outcome = call_exfuse("predict", path, tmp_path, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "no image found" in outcome.errors
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    outcome = call_exfuse("predict", path, tmp_path / "a.png", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert re.search(f"^error: {path}: .*readable", outcome.errors)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_changed_export_is_refused_by_its_file_and_its_folder(
    exported: dict[str, Path], name: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported[name], tmp_path / "export"))
    rng = np.random.default_rng(0)
    files = {"onnx": ["model.onnx"], "openvino": ["model.xml", "model.bin"]}[name]
    for path in (folder / file for file in (*files, "export.json", MANIFEST)):
        content = path.read_bytes()
        for place, bit in zip(rng.integers(len(content), size=5), rng.integers(8, size=5), strict=True):
            changed = bytearray(content)
            changed[place] ^= 1 << int(bit)
            path.write_bytes(changed)
            for source in (folder, folder / FORMATS[name]):
                with pytest.raises(CheckpointError) as caught:
                    Predictor.from_pretrained(source)
                assert re.search(f"^{path}: .*changed", str(caught.value))
        path.write_bytes(content)
    assert (
        Predictor.from_pretrained(folder).engine.name == Predictor.from_pretrained(folder / FORMATS[name]).engine.name
    )
    for path in (folder / files[-1], folder / MANIFEST):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match=str(path)):
            Predictor.from_pretrained(folder / FORMATS[name] if path.name == MANIFEST else folder)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "torch-export" else pytest.mark.nightly) for name in FORMATS]
)
def test_a_full_disk_is_an_error_and_leaves_nothing(
    exported: dict[str, Path], model: Path, name: str, tmp_path: Path
) -> None:
    size = max(path.stat().st_size for path in exported[name].iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (50_000, size // 2, size - 10_000):  # bytes that a file may have
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            outcome = call_exfuse("export", model, "--format", name, "-o", tmp_path / "export")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert outcome.code == 1
        assert outcome.errors.startswith(f"error: {tmp_path / 'export'}: ")
        assert list(tmp_path.iterdir()) == []


def test_a_program_is_not_opened_since_reading_it_can_run_what_is_in_it(
    exported: dict[str, Path], pack: Path, tmp_path: Path
) -> None:
    for source in (exported["torch-export"], exported["torch-export"] / "model.pt2"):
        outcome = call_exfuse("predict", source, pack, "-o", tmp_path / "out")
        assert outcome.code == 1
        assert "model.pt2" in outcome.errors
    assert not (tmp_path / "out").exists()


def test_predict_cuts_large_images_into_tiles(model: Path, pack: Path, tmp_path: Path) -> None:
    small, large = (open_dataset(pack, "val")[index].image for index in range(2))
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.tile(large, (3, 4, 1))).save(photos / "large.png")
    Image.fromarray(small[:60, :64]).save(photos / "small.png")
    options = ("--tile", "256", "--overlap", "64", "--engine", "torch")
    outcome = call_exfuse("predict", model, photos, "-o", tmp_path / "out", *options)
    assert outcome.code == 0, outcome.errors
    predictor = Predictor.from_pretrained(model, "torch")
    for name in ("large", "small"):
        whole = predictor(photos / f"{name}.png").labels
        with Image.open(tmp_path / "out" / "masks" / f"{name}.png") as mask:
            share = (np.array(mask) == whole).mean()
        assert share == 1 if name == "small" else share > 0.8
    fractions = json.loads((tmp_path / "out" / "fractions.json").read_text())
    assert all(sum(row["fractions"].values()) == pytest.approx(1) for row in fractions)
    assert (tmp_path / "out" / "overlays" / "large.jpg").is_file()
    refused = call_exfuse("predict", model, photos, "-o", tmp_path / "other", "--tile", "256", "--overlap", "129")
    assert refused.code == 1
    assert re.search(r"\b256 .*\b129\b", refused.errors)
