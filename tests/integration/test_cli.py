"""The command line as people call it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

from exfuse.cli import demo, train
from exfuse.cli.app import build_app
from exfuse.data.datasets import open_dataset
from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.evaluation.evaluate import DEFINITION
from exfuse.models import registry
from exfuse.predictor import Predictor
from exfuse.training.recipes import load_config, read_recipe_text, recipe_names, recipe_summary
from support.tiny_run import STEPS, TINY, Outcome, call_exfuse, read_metrics

EXFUSE = Path(sys.executable).with_name("exfuse")
COMMANDS = [
    "ablate", "checkpoint", "compare", "data", "demo", "doctor", "evaluate", "export", "models", "predict", "pretrain",
    "recipes", "submit", "train", "weights",
]  # fmt: skip
PROTOCOL = {
    "model", "data", "split", "images", "data_sha256", "ignore_index", "mean_iou", "counting", "absent_classes",
    "scales", "flip", "averaging", "resize", "padding", "engine", "precision", "device", "versions",
}  # fmt: skip


class Trained(NamedTuple):
    run: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def trained(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Returns a run made by `exfuse train`; not to be changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    return Trained(run, call_exfuse("train", "demo", *TINY, f"data.root={pack}", f"output={run}"))


def assert_one_line_error(outcome: Outcome, *facts: str) -> None:
    assert outcome.code == 1
    assert outcome.errors.startswith("error: ")
    assert [fact for fact in facts if fact not in outcome.errors] == []
    assert outcome.errors.rstrip("\n").count("\n") == 0
    assert "Traceback" not in outcome.errors + outcome.output


def test_the_commands_are_those_we_know_of() -> None:
    assert sorted(typer.main.get_command(build_app()).commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_explains_every_option(command: str) -> None:
    outcome = call_exfuse(command, "--help")
    assert outcome.code == 0
    assert re.search(rf"Usage: .*exfuse {command}\b", outcome.output)
    described = typer.main.get_command(build_app()).commands[command]
    assert described.help
    for parameter in described.params:
        assert parameter.opts[0] in outcome.output
        assert parameter.help, f"{command} {parameter.name}"
        assert " ".join(parameter.help.split()[:3]) in outcome.output


def test_the_help_names_every_command_and_so_does_a_call_without_one() -> None:
    asked, bare = call_exfuse("--help"), call_exfuse()
    assert asked.code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", asked.output)
        assert re.search(rf"\b{command}\b", bare.output + bare.errors)


def test_models_lists_every_named_model_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["gcn_tiny", "exfuse_tiny", "gcn_resnet18"]  # all take seconds
    monkeypatch.setattr(registry, "list_models", lambda: few)
    outcome = call_exfuse("models", "--classes", "2")
    assert outcome.code == 0
    rows = re.findall(r"(\w+)\s+│\s+([\d.]+) M\s+│\s+([\d.]+) G", outcome.output)
    sizes = registry.describe_models(2)
    expected = [(size.name, f"{size.parameters / 1e6:.2f}", f"{size.multiply_adds / 1e9:.2f}") for size in sizes]
    assert rows == expected
    assert [name for name, _, _ in rows] == list(few)
    assert float(rows[2][1]) > 11


def test_recipes_lists_every_recipe_with_its_first_line() -> None:
    outcome = call_exfuse("recipes")
    assert outcome.code == 0
    assert outcome.output.splitlines() == [f"{name}  {recipe_summary(name)}" for name in recipe_names()]


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_with_a_name_prints_that_recipe_to_the_letter(name: str) -> None:
    outcome = call_exfuse("recipes", name)
    assert outcome.code == 0
    assert outcome.output == read_recipe_text(name)


def test_train_leaves_a_run_and_says_where(trained: Trained) -> None:
    assert trained.outcome.code == 0
    assert trained.outcome.errors == ""
    assert "val: 4 images, scales 1" in trained.outcome.output
    for name in (*SCENE_CLASSES.names, "pixel accuracy", "frequency-weighted IoU"):
        assert name in trained.outcome.output
    for file in ("report.html", "model"):
        assert str(trained.run / file) in trained.outcome.output
        assert (trained.run / file).exists()
    assert [record["step"] for record in read_metrics(trained.run) if record["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_train_without_a_terminal_shows_its_progress_as_lines(trained: Trained) -> None:
    for step in range(1, STEPS + 1):
        assert f"step {step}/{STEPS}  epoch" in trained.outcome.output


def test_evaluate_prints_a_table_and_writes_counts_and_protocol(
    trained: Trained, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call_exfuse("evaluate", trained.run / "model", pack)
    assert outcome.code == 0
    content = json.loads((tmp_path / "evaluation_val.json").read_text())
    assert "evaluation_val.json" in outcome.output
    assert set(content["protocol"]) == PROTOCOL
    assert content["protocol"]["model"] == str(trained.run / "model")
    assert (content["protocol"]["split"], content["protocol"]["images"]) == ("val", 4)
    assert (content["protocol"]["scales"], content["protocol"]["flip"]) == ([1.0], False)
    assert content["protocol"]["precision"] == "fp32"
    own = json.loads((trained.run / "model" / "config.json").read_text())["metrics"]
    assert content["confusion"] == own["confusion"]
    assert content["protocol"]["data_sha256"] == own["protocol"]["data_sha256"]
    for row in content["classes"]:
        shown = "-" if row["iou"] is None else f"{100 * row['iou']:.2f}"
        assert re.search(rf"│ {row['name']} +│ +{re.escape(shown)} │", outcome.output)
    assert f"{100 * content['mean_iou']:.2f}" in outcome.output
    assert content["protocol"]["mean_iou"] == DEFINITION
    assert f"mean IoU: {DEFINITION}" in " ".join(outcome.output.split())


def test_evaluate_scores_a_split_of_any_name_with_any_options(
    trained: Trained, own_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (own_pack / "winter.txt").write_text("train_0004\nval_0001\n")
    options = ("--split", "winter", "--scales", "0.75,1", "--flip", "--precision", "bf16")
    outcome = call_exfuse("evaluate", trained.run / "model", own_pack, *options)
    assert outcome.code == 0
    assert "winter: 2 images, scales 0.75, 1 with flip" in outcome.output
    content = json.loads((tmp_path / "evaluation_winter.json").read_text())
    protocol = content["protocol"]
    assert (protocol["split"], protocol["images"]) == ("winter", 2)
    assert (protocol["scales"], protocol["flip"], protocol["precision"]) == ([0.75, 1.0], True, "bf16")
    assert protocol["averaging"] == "softmax probabilities"
    labelled = sum(int((sample.mask != 255).sum()) for sample in open_dataset(own_pack, "winter"))
    assert sum(map(sum, content["confusion"])) == labelled


def test_evaluate_writes_where_it_is_told_to(trained: Trained, pack: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "scores.json"
    assert call_exfuse("evaluate", trained.run / "model", pack, "-o", target).code == 0
    assert json.loads(target.read_text())["protocol"]["split"] == "val"


def test_predict_takes_a_data_set_and_writes_masks_overlays_and_shares(
    trained: Trained, pack: Path, tmp_path: Path
) -> None:
    outcome = call_exfuse("predict", trained.run / "model", pack, "-o", tmp_path / "out")
    assert outcome.code == 0
    assert re.search(rf"\b16 images\b.*\b0 skipped.* {tmp_path / 'out'}", outcome.output)
    names = sorted(path.stem for path in (pack / "images").iterdir())
    assert len(names) == 16
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == [f"{name}.png" for name in names]
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == [f"{name}.jpg" for name in names]
    rows = json.loads((tmp_path / "out" / "fractions.json").read_text())
    assert [Path(row["image"]).stem for row in rows] == names
    for row in rows:
        assert list(row["fractions"]) == list(SCENE_CLASSES.names)
        assert sum(row["fractions"].values()) == pytest.approx(1)
        with Image.open(tmp_path / "out" / row["mask"]) as mask:
            ground = float((np.array(mask) == 0).mean())
        assert row["fractions"]["ground"] == pytest.approx(ground)


def test_a_predicted_mask_is_a_palette_image_of_the_images_size(trained: Trained, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (45, 83, 3), dtype=np.uint8)).save(photo)
    assert call_exfuse("predict", trained.run / "model", photo, "-o", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "masks" / "photo.png") as mask:
        assert (mask.mode, mask.size) == ("P", (83, 45))
        colors = np.array(mask.getpalette()).reshape(-1, 3)[: len(SCENE_CLASSES)]
        assert colors.tolist() == [list(color) for color in SCENE_CLASSES.palette]
        labels = np.array(mask)
    expected = Predictor.from_pretrained(trained.run / "model")(photo)  # by the same engine
    assert np.array_equal(labels, expected.labels)
    with Image.open(tmp_path / "out" / "overlays" / "photo.jpg") as overlay:
        assert overlay.width >= 83  # as wide as the legend needs
        assert overlay.height > 45  # a legend below


def test_predict_takes_files_folders_and_globs_together(trained: Trained, pack: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    shutil.copy(pack / "images" / "val_0001.jpg", folder / "val_0001.jpg")
    (folder / "notes.txt").write_text("not an image")
    paths = (pack / "images" / "val_0001.jpg", tmp_path / "photos", pack / "images" / "train_000[12].jpg")
    outcome = call_exfuse("predict", trained.run / "model", *paths, "-o", tmp_path / "out")
    assert outcome.code == 0
    masks = tmp_path / "out" / "masks"
    found = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.png"))
    assert found == ["deep/val_0001.png", "train_0001.png", "train_0002.png", "val_0001.png"]


def test_predict_keeps_apart_images_of_the_same_name(trained: Trained, pack: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(pack / "images" / "val_0002.jpg", tmp_path / "other" / "val_0001.jpg")
    paths = (pack / "images" / "val_0001.jpg", tmp_path / "other" / "val_0001.jpg")
    assert call_exfuse("predict", trained.run / "model", *paths, "-o", tmp_path / "out").code == 0
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["val_0001.png", "val_0001_2.png"]


def test_predict_reports_broken_files_skips_them_and_fails_in_the_end(
    trained: Trained, pack: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("val_0000.jpg", "val_0003.jpg"):
        shutil.copy(pack / "images" / name, folder / name)
    content = (folder / "val_0000.jpg").read_bytes()
    (folder / "half [bold]way.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    outcome = call_exfuse("predict", trained.run / "model", folder, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert re.search(r"\b2 images\b.*\b2 skipped\b", outcome.output)
    lines = outcome.errors.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"skipped: {folder / 'empty.png'}: ")
    assert lines[1].startswith(f"skipped: {folder / 'half [bold]way.jpg'}: ")
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["val_0000.png", "val_0003.png"]
    assert len(json.loads((tmp_path / "out" / "fractions.json").read_text())) == 2


def test_predicting_more_into_a_folder_keeps_the_shares_of_what_is_there(
    trained: Trained, pack: Path, tmp_path: Path
) -> None:
    for name in ("val_0000", "val_0003", "val_0000"):
        image = pack / "images" / f"{name}.jpg"
        outcome = call_exfuse("predict", trained.run / "model", image, "-o", tmp_path, "--engine", "torch")
        assert outcome.code == 0, outcome.errors
    rows = json.loads((tmp_path / "fractions.json").read_text())
    assert [Path(row["mask"]).stem for row in rows] == ["val_0000", "val_0003"]
    (tmp_path / "fractions.json").write_text("[1]")
    outcome = call_exfuse("predict", trained.run / "model", pack, "-o", tmp_path, "--engine", "torch")
    assert outcome.code == 1
    assert str(tmp_path / "fractions.json") in outcome.errors
    assert (tmp_path / "fractions.json").read_text() == "[1]"


def test_predicting_from_another_folder_keeps_what_is_there_too(
    trained: Trained, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, images = tmp_path / "out", pack / "images"
    for name, folder, target in (("val_0000", "a", "../out"), ("val_0003", "b", output), ("val_0000", "a", output)):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(images / f"{name}.jpg", tmp_path / folder / "x.jpg")
        monkeypatch.chdir(tmp_path / folder)
        outcome = call_exfuse("predict", trained.run / "model", "x.jpg", "-o", target, "--engine", "torch")
        assert outcome.code == 0, outcome.errors
    moved = output.rename(tmp_path / "moved")
    rows = json.loads((moved / "fractions.json").read_text())
    assert [row["mask"] for row in rows] == ["masks/x.png", "masks/x_2.png"]
    assert [row["image"] for row in rows] == [str(tmp_path / folder / "x.jpg") for folder in "ab"]
    assert (moved / "masks" / "x.png").read_bytes() != (moved / "masks" / "x_2.png").read_bytes()


def test_a_mask_that_a_kill_left_without_a_row_is_not_taken_for_another_image(
    trained: Trained, pack: Path, tmp_path: Path
) -> None:
    for name, folder in (("val_0000", "a"), ("val_0003", "b"), ("val_0000", "a")):
        (tmp_path / folder).mkdir(exist_ok=True)
        image = shutil.copy(pack / "images" / f"{name}.jpg", tmp_path / folder / "x.jpg")
        outcome = call_exfuse("predict", trained.run / "model", image, "-o", tmp_path / "out", "--engine", "torch")
        assert outcome.code == 0, outcome.errors
        (tmp_path / "out" / "fractions.json").unlink()  # which is written last
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["x.png", "x_2.png"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_predict_with_a_record_of_every_mask(
    trained: Trained, pack: Path, tmp_path: Path, number: signal.Signals
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index in range(2000):
        (photographs / f"{index:04d}.jpg").symlink_to(pack / "images" / "val_0000.jpg")
    output = tmp_path / "out"
    command = [EXFUSE, "predict", trained.run / "model", photographs, "-o", output, "--engine", "torch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while len(list(output.glob("overlays/*.jpg"))) < 2 and time.monotonic() < end:  # the first is recorded by then
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    recorded = {Path(row["mask"]).name for row in json.loads((output / "fractions.json").read_text())}
    masks = {path.name for path in (output / "masks").glob("*")}
    assert 1 <= len(recorded) < 2000
    assert recorded <= masks
    assert len(masks - recorded) <= 1  # the one in work
    assert not [path for path in output.rglob("*") if "partial" in path.name]


def test_version_and_help_in_short() -> None:
    outcome = call_exfuse("--version")
    assert (outcome.code, outcome.output) == (0, f"exfuse {version('exfuse')}\n")
    for arguments in (("-h",), ("predict", "-h"), ("data", "prepare", "-h")):
        outcome = call_exfuse(*arguments)
        assert outcome.code == 0
        assert "Usage" in outcome.output


def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        outcome = subprocess.run([EXFUSE, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr == "error: standard output: No space left on device\n"


def test_the_demo_draws_trains_scores_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SCENES", {"train": 6, "val": 2, "heldout": 2})
    monkeypatch.setattr(demo, "load_config", lambda recipe, changes: load_config(recipe, [*TINY, "epochs=1", *changes]))
    outcome = call_exfuse("demo", "--recipe", "demo_gcn", "-o", tmp_path)
    assert outcome.code == 0
    run = tmp_path / "demo_gcn"
    for place in (run / "predictions" / "overlays", run / "report.html", run / "model"):
        assert str(place) in outcome.output
        assert place.exists()
    overlays = sorted(path.name for path in (run / "predictions" / "overlays").iterdir())
    assert overlays == ["heldout_0000.jpg", "heldout_0001.jpg"]
    assert "striped_disc" in outcome.output
    again = call_exfuse("demo", "--recipe", "demo_gcn", "-o", tmp_path)  # a finished run is shown once more
    assert again.code == 0, again.errors


def test_control_c_exits_130_says_how_to_go_on_and_the_run_can_be_finished(pack: Path, tmp_path: Path) -> None:
    run, steps = tmp_path / "run", 36
    command = [
        "train",
        "demo",
        *TINY,
        "data.crop_size=[96, 96]",
        "epochs=12",
        "evaluate_every=12",
        "checkpoint_every=99",
    ]
    command += [f"data.root={pack}", f"output={run}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen([EXFUSE, *command], stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").is_file() or len(read_metrics(run)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    taken = len(read_metrics(run))
    assert 2 <= taken < steps
    assert re.search(rf"\bstep {taken}\b.*--resume", errors)
    assert "Traceback" not in errors
    assert (run / "checkpoints" / "latest").read_text().startswith(f"step_{taken:08d} ")

    again = call_exfuse(*command)
    assert_one_line_error(again, str(run), "--resume")
    resumed = call_exfuse(*command, "--resume")
    assert resumed.code == 0
    assert f"step {taken}/{steps}" not in resumed.output
    kinds = [(record["kind"], record["step"]) for record in read_metrics(run)]
    assert kinds == [*(("train", step) for step in range(1, steps + 1)), ("val", steps)]


def test_control_c_before_the_first_step_exits_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    outcome = call_exfuse("train", "demo")
    assert outcome.code == 130
    assert "Traceback" not in outcome.errors


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("train", "dmeo"), ["recipe 'dmeo'", "'demo'"]),
        (("train", "demo"), ["data.root=FOLDER"]),
        (("train", "demo", "data.root=nowhere"), ["nowhere: ", "no such"]),
        (("train", "demo", "epocs=3"), ["unknown", "'epocs'", "'epochs'"]),
        (("train", "demo", "epochs"), ["'epochs': ", "key=value"]),
        (("train", "demo", "epochs=none"), ["epochs: "]),
        (("train", "demo", "data.crop_size=160"), ["data.crop_size: ", "list", " 160"]),
        (("train", "demo", "data.crop_size=[64"), ["data.crop_size: ", "YAML"]),
        (("train", "[bold]mine[/bold].yaml"), ["[bold]mine[/bold].yaml: ", "recipe"]),
        (("train", "[/]mine.yaml"), ["[/]mine.yaml: ", "recipe"]),
        (("train", "[/red]mine.yaml"), ["[/red]mine.yaml: ", "recipe"]),
        (("recipes", "demo_gnc"), ["recipe 'demo_gnc'", "'demo_gcn'"]),
        (("evaluate", "nowhere/at/all", "PACK"), ["nowhere/at/all: ", "model"]),
        (("evaluate", "MODEL", "nowhere"), ["nowhere: ", "no such"]),
        (("evaluate", "MODEL", "PACK", "--split", "tset"), ["tset.txt: ", "No such file"]),
        (("evaluate", "RUN", "PACK"), ["run/model"]),
        (("evaluate", "MODEL", "PACK", "--scales", "1,two"), ["--scales 1,two: ", "'two'", "number"]),
        (("evaluate", "MODEL", "PACK", "--scales", "0"), ["--scales 0: 0 ", "0.1 and 10"]),
        (("evaluate", "MODEL", "PACK", "--scales", "nan"), ["--scales nan: nan ", "0.1 and 10"]),
        (("evaluate", "PACK", "PACK"), ["config.json: "]),
        (("predict", "MODEL", "nothing/*.jpg", "-o", "OUT"), ["nothing/*.jpg: ", "image"]),
        (("predict", "MODEL", "PACK", "-o", "OUT", "--scales", ""), ["--scales : ''", "number"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_line_and_exits_1(
    arguments: tuple[str, ...],
    facts: list[str],
    trained: Trained,
    pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": trained.run / "model", "RUN": trained.run, "PACK": pack, "OUT": tmp_path / "out"}
    assert_one_line_error(call_exfuse(*(places.get(argument, argument) for argument in arguments)), *facts)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_evaluate_refuses_a_data_set_of_other_classes(trained: Trained, own_pack: Path) -> None:
    described = json.loads((own_pack / "classes.json").read_text())
    described["classes"][3]["name"] = "carton"
    (own_pack / "classes.json").write_text(json.dumps(described))
    outcome = call_exfuse("evaluate", trained.run / "model", own_pack)
    assert_one_line_error(outcome, "class 3 ", "'carton'", "'box'")


def test_a_model_whose_weights_are_of_another_network_is_one_line(trained: Trained, pack: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained.run / "model", tmp_path / "model"))
    content = json.loads((model / "config.json").read_text())
    content["architecture"]["decoder_width"] = 12
    (model / "config.json").write_text(json.dumps(content))
    assert_one_line_error(call_exfuse("evaluate", model, pack), "config.json: ")
    (model / "manifest.json").unlink()
    assert_one_line_error(call_exfuse("evaluate", model, pack), "model.safetensors: ")


@pytest.mark.parametrize(
    "arguments",
    [("train",), ("evaluate", "model"), ("predict", "model", "photo.jpg"), ("models", "--classes", "1"), ("trian",),
     ("train", "demo", "--resum"), ("evaluate", "model", "data", "--precision", "fp16")],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_a_wrong_call_exits_2(arguments: tuple[str, ...]) -> None:
    outcome = call_exfuse(*arguments)
    assert outcome.code == 2
    assert re.search("Usage: .*exfuse", outcome.errors)
    assert "Traceback" not in outcome.errors
