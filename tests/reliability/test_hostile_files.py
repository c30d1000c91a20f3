"""Settings, lists and names that somebody damaged, or made to do harm (S6, S7)."""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from exfuse.cli.app import main
from exfuse.data.datasets import open_dataset, read_dataset_file
from exfuse.errors import ConfigError, DataError
from exfuse.models.registry import build_model
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.training.recipes import load_config, read_recipe_text
from support.limits import at_most
from support.model_folders import INFO


def random_value(rng: random.Random, depth: int = 0) -> Any:
    options: list[Callable[[], Any]] = [
        lambda: rng.choice(
            [None, True, False, float("nan"), float("inf"), -1, 0, 10**30, "", "x" * 1000, "null", "../.."]
        ),
        lambda: rng.randint(-(10**6), 10**6),
        lambda: rng.random() * 10 ** rng.randint(-30, 30),
    ]
    if depth < 4:
        options.append(lambda: [random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))])
        options.append(
            lambda: {str(random_value(rng, 4)): random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
        )
    return rng.choice(options)()


def paths_in(content: dict[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for key, value in content.items():
        paths.append(f"{prefix}{key}")
        if isinstance(value, dict):
            paths += paths_in(value, f"{prefix}{key}.")
    return paths


def test_s6_fuzzed_recipes_are_refused_by_their_key(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "fuzzed.yaml"
    original = read_recipe_text("demo")
    keys = paths_in(yaml.safe_load(original))
    refused = 0
    for _ in range(500):
        content = yaml.safe_load(original)
        key = rng.choice(keys)
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner[section]
        if rng.random() < 0.3:
            last = last[: rng.randrange(len(last))] + rng.choice("abcxyz_ .")
        inner[last] = random_value(rng)
        path.write_text(yaml.safe_dump(content))
        started = time.process_time()
        try:
            load_config(str(path))
        except ConfigError as error:
            refused += 1
            said = str(error)
            assert str(path) in said
            assert last[:20] in said or key in said or "task" in key or said.endswith("got NoneType")
        assert time.process_time() - started < 1
    assert refused > 300


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)  # nine to the eleventh x


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS,
        "a: " + "[" * 5000,
        "a: " + "{b: " * 3000,
        "? " * 3000,
        "&a [*a]",
        "!!binary x",
        "a: !!bool x",
        "a: !!int ''",
        "a: !!float ''",
        "!!timestamp x",
        "{[a]: 1}",
        "? {a: 1}\n: 2",
        "a: !!python/object:os.system x",
    ],
)
def test_s6_yaml_that_explodes_is_refused_at_once(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(content)
    with at_most(seconds=2, megabytes=200):
        with pytest.raises(ConfigError, match=r"bomb\.yaml"):
            load_config(str(path))
        with pytest.raises(ConfigError, match=r"bomb\.yaml"):
            read_dataset_file(path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..", "images/../../secret", "x\x00y"]
)
def test_s7_names_in_a_list_stay_within_the_folder(name: str, pack: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for secret in (tmp_path / "secret.png", root / "secret.png"):
        Image.new("L", (64, 64)).save(secret)
    (root / "classes.json").write_bytes((pack / "classes.json").read_bytes())
    (root / "train.txt").write_text(name + "\n")
    with pytest.raises(DataError, match="train"):
        open_dataset(root, "train")


@pytest.mark.parametrize("split", ["../train", "/etc/passwd", "a/../../b"])
def test_s7_splits_stay_within_the_folder(split: str, pack: Path) -> None:
    with pytest.raises(DataError):
        open_dataset(pack, split)
    with pytest.raises(DataError):
        open_dataset(pack / "images", split)


def test_s7_names_of_classes_lead_nowhere(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "a" / "b" / "data"
    shutil.copytree(pack, data)
    content = json.loads((data / "classes.json").read_text())
    names = ["../../out", f"{tmp_path}/out", "..", "[/red]", "<script>", "$(touch out)%s{}", "a\\..\\b"]
    for row, name in zip(content["classes"], names, strict=True):
        row["name"] = name
    (data / "classes.json").write_text(json.dumps(content))
    info = replace(INFO, class_names=tuple(names), palette=tuple((n, n, n) for n in range(len(names))))
    model = data.with_name("model")
    save_pretrained(model, build_model(info), info.to_json(), "")
    (tmp_path / "a" / "b" / "out").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "b" / "out")

    def elsewhere() -> list[tuple[Path, int]]:
        found = sorted(tmp_path.rglob("*"))
        return [(path, path.stat().st_mtime_ns) for path in found if not path.is_relative_to(Path.cwd())]

    before = elsewhere()
    for command in (
        ("evaluate", model, data, "-o", "scores.json", "--engine=torch"),
        ("compare", model, model, data, "-o", "compared", "--engine=torch"),
        ("predict", model, data / "images", "-o", "predicted", "--engine=torch"),
        ("doctor", data, "-o", "found.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["exfuse", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, command
    assert elsewhere() == before
    assert {path.name for path in Path.cwd().iterdir()} == {"scores.json", "compared", "predicted", "found.json"}
