"""What comes from files cannot steer the terminal: nothing but printable characters and newlines is printed."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from exfuse.console import printable, terminal
from exfuse.models.backbones import BACKBONES
from support.tiny_run import TINY, Outcome, call_exfuse, tiny_config, train_quietly

# Colours, the window's title, a cleared screen, a C1 control, an overwritten line, text that runs backwards, markup.
NASTY = (
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "a\rb\x08",
    "\u202egnp.exe",
    "[red]x[/x]",
    ":cat:",
    "\u2028",
)


def assert_printable(outcome: Outcome) -> None:
    text = outcome.output + outcome.errors
    assert "Traceback" not in text
    wrong = {char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs")}
    assert wrong == set()


@pytest.mark.parametrize("text", NASTY)
def test_escapes_stand_for_everything_that_steers(text: str) -> None:
    shown = printable(f"a{text}b")
    assert shown.isprintable()
    assert shown.startswith("a")
    assert printable(shown) == shown
    assert printable("straße 東京 😄.jpg") == "straße 東京 😄.jpg"


def test_lone_surrogates_of_names_that_are_no_utf8_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    terminal().print(os.fsdecode(b"photo\xff.jpg"))
    assert capsys.readouterr().out == "photo\\udcff.jpg\n"


@pytest.fixture
def nasty_pack(pack: Path, tmp_path: Path) -> Path:
    """A data set whose class names and some of whose files have nasty names."""
    root = Path(shutil.copytree(pack, tmp_path / "data"))
    content = json.loads((root / "classes.json").read_text())
    for row, name in zip(content["classes"], NASTY, strict=False):
        row["name"] = name
    (root / "classes.json").write_text(json.dumps(content))
    for index, name in enumerate(NASTY):
        if "\u2028" in name or "/" in name:
            continue
        for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
            shutil.copy(root / folder / f"val_000{index % 4}{suffix}", root / folder / f"{name}{suffix}")
        with (root / "val.txt").open("a", newline="") as file:
            file.write(f"{name}\n" if "\r" not in name else "")
    return root


def test_training_scoring_and_predicting_with_nasty_names(nasty_pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = call_exfuse("train", "demo", *TINY, "epochs=1", f"data.root={nasty_pack}", f"output={run}")
    assert trained.code == 0, trained.errors
    assert_printable(trained)
    model = run / "model"
    (nasty_pack / "images" / "\x1b[31mbroken.jpg").write_bytes(b"")
    for arguments in (
        ("evaluate", model, nasty_pack, "-o", tmp_path / "scores.json"),
        ("compare", model, model, nasty_pack, "-o", tmp_path / "comparison", "--show", "99"),
        ("doctor", nasty_pack),
    ):
        outcome = call_exfuse(*arguments)
        assert outcome.code == 0, outcome.errors
        assert_printable(outcome)
    predicted = call_exfuse("predict", model, nasty_pack, "-o", tmp_path / "out", "--engine", "torch")
    assert predicted.code == 1
    assert "\\x1b[31mbroken.jpg" in predicted.errors
    assert_printable(predicted)


def test_errors_about_nasty_names(pack: Path, tmp_path: Path) -> None:
    tensors = BACKBONES["tiny"]().state_dict()
    for number, name in enumerate(NASTY):
        save_file(tensors | {f"{name}.weight": torch.zeros(1)}, tmp_path / f"{number}.safetensors")
        (tmp_path / f"{number}.yaml").write_text(f'root: .\n"{json.dumps(name)[1:-1]}": 1\n')
        root = Path(shutil.copytree(pack, tmp_path / f"data_{number}"))
        (root / "val.txt").write_bytes(f"{name}\n".encode())
        set_tiny = (*TINY, f"data.root={root}", f"output={tmp_path / 'run'}")
        for arguments in (
            ("train", "demo", *set_tiny),
            ("train", "demo", *set_tiny, f"model.backbone_weights={tmp_path / f'{number}.safetensors'}"),
            ("train", "demo", *set_tiny, f"{name}=1"),
            ("train", name, *set_tiny),
            ("doctor", tmp_path / f"{number}.yaml"),
            ("doctor", root, "--splits", name),
            ("predict", tmp_path / "no model", tmp_path / name, "-o", tmp_path / "out"),
            ("evaluate", tmp_path / "no" / name, root),
        ):
            outcome = call_exfuse(*arguments)
            assert outcome.code != 0, arguments
            assert_printable(outcome)
            assert outcome.errors.count("\n") == 1, outcome.errors


def test_a_tensor_with_a_nasty_name_in_a_model_is_refused_printably(pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "epochs=1"))
    weights = tmp_path / "run" / "model" / "model.safetensors"
    save_file(load_file(weights) | {"\x1b[2J": torch.zeros(1)}, weights)
    (tmp_path / "run" / "model" / "manifest.json").unlink(missing_ok=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    outcome = call_exfuse("predict", tmp_path / "run" / "model", tmp_path / "a.png", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert_printable(outcome)
