"""The commands of the README and of docs are parsed as they stand there."""

import re
import shlex

import pytest
import typer

from exfuse.cli.app import build_app
from exfuse.training.recipes import load_ablation_config, load_config, load_pretraining_config
from support.documents import ROOT, blocks

LOADERS = {"train": load_config, "pretrain": load_pretraining_config, "ablate": load_ablation_config}


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
