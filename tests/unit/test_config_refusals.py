"""Recipes and overrides that are refused: the error names the key and the value."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exfuse.errors import ConfigError
from exfuse.training.config import AblationConfig, PretrainingConfig, RunConfig, TrainingConfig
from exfuse.training.recipes import (
    RENAMED,
    load_config,
    load_pretraining_config,
    read_recipe_text,
)
from support.recipes import DEMO_KEYS, refusal


@pytest.mark.parametrize("old", RENAMED)
def test_a_name_of_version_1_is_unknown_in_version_2(old: str) -> None:
    assert re.search(f"unknown .*'{old}'.*'{RENAMED[old]}'", refusal(f"{old}=1"))


def test_both_names_of_a_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("accumulation: 2\ngradient_accumulation: 2\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*\baccumulation\b.*\bgradient_accumulation\b"):
        load_config(str(path))


@pytest.mark.parametrize("version", ["3", "0", "null", "[1]", "two"])
def test_a_version_that_is_not_known_is_refused_with_what_to_do(version: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe_version: {version}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*\brecipe_version\b.*\b1 to 2\b"):
        load_config(str(path))


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"recipe 'demo_gnc'.*'demo_gcn'"):
        load_config("demo_gnc")


def test_a_recipe_file_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml.*readable"):
        load_config(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"", b"just words", b"\xff\xfe\x00", b"a: [1", b"a: 1: 2", b"@"])
def test_a_recipe_file_that_is_no_mapping_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml: "):
        load_config(str(path))


def test_a_recipe_with_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "numbered.yaml"
    path.write_text(read_recipe_text("demo") + "\n7: 8\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"numbered\.yaml.*\b7\b"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("epoch=3", "epochs"),
        ("data.crop_siez=[64, 64]", "crop_size"),
        ("optimizer.learning_rat=1", "learning_rate"),
        ("model.decoder_with=8", "decoder_width"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_known_one(override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    assert re.search(f"unknown .*'{re.escape(key)}'.*'{nearest}'", refusal(override))


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("dta.root=photos", "'dta'.*'data'"),
        ("optimiser.name=sgd", "'optimiser'.*'optimizer'"),
        ("seed.value=3", "'seed'"),
        ("data.root.folder=photos", "'root'"),
    ],
)
def test_a_misspelt_section_is_refused_with_the_nearest_known_one(override: str, facts: str) -> None:
    key = override.partition("=")[0]
    assert re.search(f"{re.escape(key)}: .*section {facts}", refusal(override))


@pytest.mark.parametrize("override", ["epochs", "=3", "--epochs", ""])
def test_an_override_without_key_or_equals_sign_is_refused(override: str) -> None:
    assert re.search(f"{override!r}.*key=value", refusal(override))


@pytest.mark.parametrize(
    "override",
    [
        "epochs=0",
        "epochs=many",
        "epochs=2.5",
        "epochs=",
        "seed=-1",
        "seed=4294967296",
        "precision=fp16",
        "ema_decay=1",
        "ema_decay=-0.1",
        "channels_last=perhaps",
        "output=[a, b]",
        "data.crop_size=[65, 64]",
        "data.crop_size=[32, 32]",
        "data.crop_size=[64]",
        "data.scale=[0, 1]",
        "data.scale=[2.0, 0.5]",
        "data.flip=1.5",
        "data.image_std=[0, 1, 1]",
        "data.image_mean=[0.5, 0.5]",
        "data.workers=-1",
        "model.dap_window=2",
        "model.decoder=half",
        "model.decoder_width=0",
        "model.decoder_width=broad",
        "model.gcn_kernel=0",
        "loss.class_weights=best",
        "loss.dice=-1",
        "optimizer.name=adam",
        "optimizer.learning_rate=0",
        "optimizer.momentum=1.1",
        "optimizer.schedule=step",
        "data=photos",
        "loss=3",
    ],
)
def test_a_bad_value_is_refused_with_its_key(override: str) -> None:
    key, _, _ = override.partition("=")
    message = refusal(override)
    assert message.startswith("demo: ")
    assert all(part in message for part in key.split("."))
    assert "unknown" not in message


@pytest.mark.parametrize(
    "key", ["ema_decay", "data.flip", "data.brightness", "loss.dice", "loss.auxiliary", "optimizer.learning_rate"]
)
@pytest.mark.parametrize("value", [".nan", ".inf", "nan"])
def test_a_number_that_is_not_finite_is_refused_with_its_key(key: str, value: str) -> None:
    assert f"demo: {key}: " in refusal(f"{key}={value}")


@pytest.mark.parametrize("override", ["data.image_mean=[.nan, 0.5, 0.5]", "data.scale=[0.5, .inf]"])
def test_a_list_with_a_number_that_is_not_finite_is_refused(override: str) -> None:
    assert f"demo: {override.partition('=')[0]}." in refusal(override)


def test_a_batch_that_accumulation_does_not_divide_is_refused_with_both_numbers() -> None:
    assert re.search(r"batch_size 8\b.*gradient_accumulation 3\b", refusal("gradient_accumulation=3"))


def test_a_section_that_is_a_value_is_refused_as_a_whole() -> None:
    assert "demo: data: " in refusal("data=5")


def test_a_recipe_for_another_command_is_refused_with_that_command() -> None:
    with pytest.raises(ConfigError, match=r"imagenette_resnet18: .*exfuse pretrain.*exfuse train"):
        load_config("imagenette_resnet18")
    with pytest.raises(ConfigError, match=r"demo: .*exfuse train.*exfuse pretrain"):
        load_pretraining_config("demo")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.area=[0.8, 0.2]", r"data: .*area .*\[0.8, 0.2\]"),
        ("data.resize=64", r"data: .*resize 64 .*\[96, 96\]"),
        ("model.head_weights=[1, 1, 1]", "model.head_weights"),
        ("model.head_weights=[1, 1, 1, -1]", "model.head_weights.3"),
        ("model.label_smoothing=1", "model.label_smoothing"),
        ("model.name=resnet18", "unknown .*'model.name'"),
    ],
)
def test_a_bad_value_of_a_pretraining_recipe_is_refused_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_pretraining_config("imagenette_resnet18", [override])


def test_a_long_bad_value_is_cut_in_the_message() -> None:
    assert len(refusal(f"optimizer.name={'x' * 5000}")) < 300


@pytest.mark.parametrize(("line", "key"), [("batch_size: 9", "batch_size"), ("optimizer: {}", "optimizer")])
def test_a_key_that_comes_twice_is_refused(line: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    text = read_recipe_text("demo").rstrip()
    path.write_text(f"{text}\n{line}\n", encoding="utf-8")
    assert re.search(rf"{path}.* {len(text.splitlines()) + 1}: .*{key!r}", refusal(recipe=str(path)))
    nested = text.replace("  scale:", "  scale: [1, 1]\n  scale:")
    path.write_text(nested, encoding="utf-8")
    assert re.search(f"{path}.*'scale'", refusal(recipe=str(path)))


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch PATH']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['PATH']]",
        "!!python/name:os.system",
        "!!python/object/new:os.system ['touch PATH']",
    ],
)
def test_yaml_tags_that_would_run_code_are_refused(value: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    harmful = value.replace("PATH", str(trace))
    path = tmp_path / "harmful.yaml"
    path.write_text(f"{read_recipe_text('demo')}\nextra: {harmful}\n", encoding="utf-8")
    assert "YAML" in refusal(f"output={harmful}")
    assert "YAML" in refusal(recipe=str(path))
    assert not trace.exists()


def test_a_network_begins_with_one_thing() -> None:
    assert re.search(
        r"model: .*\bweights\b.*\bbackbone_weights\b", refusal("model.weights=a", "model.backbone_weights=b")
    )


EXTREME = {
    "hexadecimal": "0x" + "f" * 5000,
    "octal": "0" + "7" * 6000,
    "binary": "0b" + "1" * 9999,
    "decimal": "9" * 5000,
    "negative": "-0x" + "f" * 5000,
    "base 60": ":".join(["59"] * 3000),
    "base 60 with a point": ":".join(["59"] * 300) + ".5",
    "large": str(10**18),
    "largest": "1.7e+308",
    "quoted": '"' + "9" * 5000 + '"',
    "many": "[" + "1," * 300 + "1]",
    "long": "x" * 70_000,
    "not a number": ".nan",
    "null character": '"a\\0b"',
    "escape": '"\\e[2J"',
    "half of a character": '"\\ud800"',
}


@pytest.mark.parametrize("kind", EXTREME)
def test_an_extreme_value_of_any_key_is_refused_by_its_key_and_at_once(kind: str) -> None:
    started = time.process_time()
    for key in DEMO_KEYS:
        message = refusal(f"{key}={EXTREME[kind]}")
        assert key in message
        assert len(message) < 600
    assert time.process_time() - started < 0.5 * len(DEMO_KEYS)


def numbers_in(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Returns each number of a JSON schema with its limits."""
    found = []
    if "$ref" in schema:
        return numbers_in(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
    if schema.get("type") in ("integer", "number"):
        found.append((path, schema))
    for name, inner in schema.get("properties", {}).items():
        found += numbers_in(inner, definitions, f"{path}.{name}")
    for inner in [*schema.get("anyOf", []), *schema.get("prefixItems", [])]:
        found += numbers_in(inner, definitions, path)
    return found


@pytest.mark.parametrize("config", [TrainingConfig, PretrainingConfig, AblationConfig])
def test_every_number_of_a_recipe_has_two_limits(config: type[RunConfig]) -> None:
    schema = config.model_json_schema()
    numbers = numbers_in(schema, schema["$defs"])
    assert len(numbers) > 25
    for path, limits in numbers:
        if "enum" in limits or "const" in limits:
            continue
        assert limits.keys() & {"minimum", "exclusiveMinimum"}, path
        assert limits.keys() & {"maximum", "exclusiveMaximum"}, path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: " + b"x" * 20_000, "line 1 has 20,003 characters"),
        (b"# a comment\n" * 30_000, "262,144 are allowed"),
        (b"a: [" + b"1,\n" * 6000 + b"1]", "more than 4,000 values"),
    ],
    ids=["line", "file", "values"],
)
def test_a_recipe_file_has_a_limit_and_so_have_its_lines(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(content)
    found = refusal(recipe=str(path))
    assert f"{path}: " in found
    assert message in found


@pytest.mark.parametrize("become", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_recipe_that_is_no_file_is_refused_and_not_read(become: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "endless.yaml"
    become(path)
    assert re.search(f"{path}.*regular file", refusal(recipe=str(path)))
