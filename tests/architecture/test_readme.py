"""The README's commands and its Python are run, or at least parsed, as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from PIL import Image

from exfuse.cli.app import build_app
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.training.recipes import load_ablation_config, load_config, load_pretraining_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


LOADERS = {"train": load_config, "pretrain": load_pretraining_config, "ablate": load_ablation_config}


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (path.name, block)
        for path in DOCUMENTS
        for block in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    ]


def commands() -> list[tuple[str, str]]:
    return [
        (name, line.partition("  #")[0].strip())
        for name, block in blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 8
    assert {"make demo", "make test"} <= {command for _, command in commands()}


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_documented_command_parses(document: str, command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert words[1] in targets
        return
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        return
    if words[0] == "torchrun":
        words = words[words.index("exfuse") :]
    assert words[0] == "exfuse", f"{document}: no test knows how to check {command!r}"
    chosen, context, rest = typer.main.get_command(build_app()), None, words[1:]
    while hasattr(chosen, "get_command"):  # down to the command itself, through groups such as `exfuse data`
        context = chosen.make_context(words[0], rest[:1], parent=context, resilient_parsing=True)
        name, *rest = rest
        chosen = chosen.get_command(context, name)
        assert chosen is not None, f"{document}: no command {name}"
    parsed = chosen.make_context(words[1], rest, parent=context)
    if words[1] in LOADERS:
        LOADERS[words[1]](parsed.params["recipe"], list(parsed.params["overrides"] or []))


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelMetadata(
        name="gcn_tiny",  # which is converted sooner than the whole network
        options=options_of("gcn_tiny", {"decoder": "stride4"}),
        class_names=("road", "sky"),
        palette=((128, 64, 128), (70, 130, 180)),
        ignore_index=255,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
    )
    save_pretrained(tmp_path / "runs/camvid_resnet18/model", build_model(info), info.to_json(), card="")
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    code = [block for name, block in blocks("python") if name == "README.md"]
    assert code
    for block in code:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own text
    assert (tmp_path / "overlay.png").is_file()
