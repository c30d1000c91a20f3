"""Every command that writes, against every place that is somebody else's: not a byte of it may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exfuse.models.backbones import BACKBONES
from exfuse.outputs.folder import JOURNAL
from support.tiny_run import TINY, call_exfuse, tiny_config, train_quietly


class Inputs:
    """What the commands are given, made once; never to be changed."""

    def __init__(self, root: Path, pack: Path) -> None:
        self.root, self.pack = root, pack
        train_quietly(tiny_config(pack, root / "run", "epochs=1"))
        self.model = root / "run" / "model"
        for split in ("train", "val"):
            for label in ("a", "b"):
                folder = root / "classified" / split / label
                folder.mkdir(parents=True)
                Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(folder / f"{label}.png")
        torch.save(BACKBONES["tiny"]().state_dict(), root / "tiny.pth")


@pytest.fixture(scope="module")
def inputs(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"), pack)


PRETRAIN = ("epochs=1", "batch_size=2", "data.crop_size=[64,64]", "data.resize=64", "model.backbone=tiny")
# Arguments by the inputs, the output and a tree of VOC's.
COMMANDS: dict[str, Callable[[Inputs, Path, Path], tuple[object, ...]]] = {
    "train": lambda i, out, _: ("train", "demo", *TINY, f"data.root={i.pack}", f"output={out}"),
    "train --resume": lambda i, out, _: ("train", "demo", *TINY, f"data.root={i.pack}", f"output={out}", "--resume"),
    "pretrain": lambda i, out, _: (
            "pretrain", "imagenette_resnet18", *PRETRAIN, f"data.root={i.root / 'classified'}", f"output={out}",
        ),
    "ablate": lambda i, out, _: ("ablate", "paper", "epochs=1", f"data.root={i.pack}", f"output={out}"),
    "demo": lambda _, out, __: ("demo", "-o", out),
    "predict": lambda i, out, _: ("predict", i.model, i.pack, "-o", out, "--engine", "torch"),
    "predict its output": lambda i, out, _: ("predict", i.model, out, "-o", out, "--engine", "torch"),
    "compare": lambda i, out, _: ("compare", i.model, i.model, i.pack, "-o", out),
    "export": lambda i, out, _: ("export", i.model, "--format", "torch-export", "-o", out),
    "data prepare voc": lambda _, out, voc: ("data", "prepare", "voc", voc, "-o", out, "--partial"),
    "data prepare sbd": lambda _, out, voc: ("data", "prepare", "sbd", voc, "-o", out, "--partial"),
    "data prepare coco": lambda _, out, voc: ("data", "prepare", "coco", voc, "-o", out, "--partial"),
    "evaluate": lambda i, out, _: ("evaluate", i.model, i.pack, "-o", out),
    "doctor": lambda i, out, _: ("doctor", i.pack, "-o", out),
    "submit": lambda i, out, voc: ("submit", "voc", i.model, voc, "--split", "val", "-o", out),
    "weights import": lambda i, out, _: ("weights", "import", i.root / "tiny.pth", "--backbone", "tiny", "-o", out),
}  # fmt: skip
SITUATIONS = (
    "own photographs", "data set", "model folder", "result of another command", "file", "JSON file", "link to a file",
    "link to photographs", "dangling link", "link that goes in circles", "device", "place that cannot be written to",
    "file on the way",
)  # fmt: skip


def occupied_place(situation: str, root: Path, inputs: Inputs) -> Path:
    """Makes a place that is somebody else's, and returns it."""
    place = root / "place"
    photographs = root / "photographs"
    if "photographs" in situation:
        photographs.mkdir()
        for name in ("00_beach.jpg", "family.png", "masks.txt", "comparison.json", "fractions.json", "classes.json"):
            (photographs / name).write_bytes(b"mine")
        (photographs / "masks").mkdir()
        (photographs / "masks" / "val_0000.png").write_bytes(b"mine")
    if situation == "own photographs":
        return photographs
    if situation == "data set":
        return Path(shutil.copytree(inputs.pack, place))
    if situation == "model folder":
        return Path(shutil.copytree(inputs.model, place))
    if situation == "result of another command":
        place.mkdir()
        (place / JOURNAL).write_text('{"command": "exfuse something"}\n')
        (place / "fractions.json").write_text("[]")
    elif situation == "file":
        place.write_bytes(b"mine")
    elif situation == "JSON file":
        place.write_text('{"mine": 1}')
    elif situation == "file on the way":
        place.write_bytes(b"mine")
        return place / "below" / "result"
    elif situation == "device":
        return Path("/dev/null")
    elif situation == "place that cannot be written to":
        return Path("/proc/exfuse/result")
    else:
        (root / "theirs").write_bytes(b"mine")
        targets = {"link to a file": "theirs", "link to photographs": "photographs", "dangling link": "gone"}
        place.symlink_to(root / targets.get(situation, "place"))
    return place


def snapshot(*roots: Path) -> dict[Path, object]:
    """Returns everything below some folders: the bytes of files, the targets of links, and folders."""
    found: dict[Path, object] = {}
    for root in roots:
        for path in [root, *root.rglob("*")]:
            if path.is_symlink():
                found[path] = path.readlink()
            else:
                found[path] = path.read_bytes() if path.is_file() else "folder"
    return found


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_somebody_elses_is_refused_and_stays_to_the_byte(
    command: str, situation: str, inputs: Inputs, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "here").mkdir()
    monkeypatch.chdir(work / "here")
    place = occupied_place(situation, work, inputs)
    before = snapshot(work, inputs.root, inputs.pack, voc)
    outcome = call_exfuse(*COMMANDS[command](inputs, place, voc))
    assert outcome.code == 1, outcome
    assert outcome.errors.count("\n") == 1, outcome.errors
    assert str(place) in outcome.errors or str(place.parent) in outcome.errors or str(work / "place") in outcome.errors
    assert snapshot(work, inputs.root, inputs.pack, voc) == before


@pytest.mark.parametrize(
    "command",
    ["predict", "compare", pytest.param("export", marks=pytest.mark.nightly), "data prepare voc", "evaluate", "doctor"],
)
def test_own_results_may_be_made_anew_but_not_over_what_was_changed_or_added(
    command: str, inputs: Inputs, voc: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    arguments = COMMANDS[command](inputs, place, voc)
    for _ in range(2):
        outcome = call_exfuse(*arguments)
        assert outcome.code == 0, outcome.errors
    written = [path for path in [place, *place.rglob("*")] if path.is_file() and path.name != JOURNAL]
    assert written
    for path in written:
        if path.stat().st_nlink > 1:
            continue  # an image of the user's own, which was linked
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        before = snapshot(tmp_path)
        outcome = call_exfuse(*arguments)
        assert outcome.code == 1, path
        assert str(place) in outcome.errors
        assert snapshot(tmp_path) == before
        path.write_bytes(content)
    assert call_exfuse(*arguments).code == 0


def test_a_folder_of_predictions_that_were_corrected_by_hand_keeps_them(inputs: Inputs, tmp_path: Path) -> None:
    place = tmp_path / "place"
    arguments = ("predict", inputs.model, inputs.pack / "images" / "val_0000.jpg", "-o", place, "--engine", "torch")
    assert call_exfuse(*arguments).code == 0
    mask = place / "masks" / "val_0000.png"
    mask.write_bytes(b"corrected")
    more = ("predict", inputs.model, inputs.pack / "images" / "val_0001.jpg", "-o", place, "--engine", "torch")
    assert call_exfuse(*more).code == 0  # of other images results can be added
    assert call_exfuse(*arguments).code == 1
    assert mask.read_bytes() == b"corrected"
    assert len(list((place / "masks").iterdir())) == 2
