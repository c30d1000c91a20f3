"""Recipes, their overrides and what is refused."""

import math
import os
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.distributed import DistContext
from exfuse.errors import ConfigError
from exfuse.models.backbones import BACKBONES
from exfuse.models.registry import create_model
from exfuse.training.checkpoint import TrainingState
from exfuse.training.config import AblationConfig, PretrainingConfig, RunConfig, TrainingConfig
from exfuse.training.optim import learning_rate_factor
from exfuse.training.recipes import (
    RENAMED,
    dump_config,
    explained,
    flat_keys,
    load_ablation_config,
    load_any,
    load_config,
    load_pretraining_config,
    read_recipe_text,
    recipe_names,
    recipe_summary,
)
from exfuse.training.run import Run

TRAINING_RECIPES = {
    "camvid_resnet18", "camvid_resnet18_long", "ccp_resnet18", "demo", "demo_gcn", "voc_mixed", "voc_train",
    "voc_trainaug",
}  # fmt: skip
PRETRAINING_RECIPES = {
    "imagenet_resnet50", "imagenet_resnext101", "imagenet_resnext101_rearranged", "imagenet_resnext131",
    "imagenette_resnet18",
}  # fmt: skip
ABLATION_RECIPES = {"paper", "paper_voc"}
PACKAGED_RECIPES = TRAINING_RECIPES | PRETRAINING_RECIPES | ABLATION_RECIPES


def leaf_keys(content: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in content.items():
        keys += leaf_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return keys


def without_key(content: dict[str, Any], key: str) -> dict[str, Any]:
    *sections, last = key.split(".")
    inner = content
    for section in sections:
        inner = inner[section]
    del inner[last]
    return content


DEMO_KEYS = leaf_keys(yaml.safe_load(read_recipe_text("demo")))
SECTIONS = ["data", "model", "loss", "optimizer"]


def refusal(*overrides: str, recipe: str = "demo") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)


def test_the_packaged_recipes_are_those_we_know_of() -> None:
    assert set(recipe_names()) == PACKAGED_RECIPES
    assert recipe_names() == sorted(PACKAGED_RECIPES)


@pytest.mark.parametrize("name", sorted(TRAINING_RECIPES))
def test_every_training_recipe_loads_and_its_model_can_be_built(name: str) -> None:
    config = load_config(name)
    assert config.output.name == name
    model = create_model(config.model.name, num_classes=len(SCENE_CLASSES), **asdict(config.model.options))
    assert model.num_classes == len(SCENE_CLASSES)


@pytest.mark.parametrize("name", sorted(PACKAGED_RECIPES))
def test_every_packaged_recipe_is_at_most_sixty_lines_and_says_what_it_is(name: str) -> None:
    lines = read_recipe_text(name).splitlines()
    assert len(lines) <= 60
    assert lines[0] == f"# {recipe_summary(name)}"
    assert len(recipe_summary(name)) > 20


@pytest.mark.parametrize("key", [*DEMO_KEYS, *SECTIONS])
def test_a_key_that_a_recipe_lacks_has_its_default(key: str, tmp_path: Path) -> None:
    content = without_key(yaml.safe_load(read_recipe_text("demo")), key)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("seed: 0\n")
    expected, found, usual = (load(name) for name in ("demo", str(path), str(nothing)))
    for name, value in found.items():
        of = usual if name == key or name.startswith(f"{key}.") else expected
        if name != "output":
            assert value == of[name], name
    assert found["output"] == (Path("runs/mine") if key == "output" else Path("runs/demo/demo"))


def load(recipe: str) -> dict[str, Any]:
    """Returns all keys of a recipe, dotted, with their values."""
    config = load_config(recipe)
    return flat_keys(config.model_dump())


V1 = Path(__file__).with_name("recipe_of_version_1.yaml")


def test_a_recipe_of_version_1_with_all_its_53_keys_is_read_as_it_was_meant(tmp_path: Path) -> None:
    older = yaml.safe_load(V1.read_text())
    assert len(leaf_keys(older)) == 53
    config = load_config(str(V1), ["output=runs/demo/demo"])
    assert config == load_config("demo", ["optimizer.backbone_lr_scale=0.5", "gradient_accumulation=2"])
    assert config.recipe_version == 2


def test_a_pretraining_recipe_of_version_1_has_heads_of_one_linear_layer(tmp_path: Path) -> None:
    content = yaml.safe_load(read_recipe_text("imagenette_resnet18"))
    assert load_pretraining_config("imagenette_resnet18").model.head_hidden_width == 512
    del content["recipe_version"]
    path = tmp_path / "mine.yaml"
    for model in (content.pop("model"), None):
        path.write_text(yaml.safe_dump(content | ({"model": model} if model else {})))
        assert load_pretraining_config(str(path)).model.head_hidden_width == 0
        assert load_pretraining_config(str(path), ["model.head_hidden_width=8"]).model.head_hidden_width == 8


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


@pytest.mark.parametrize("name", sorted(PACKAGED_RECIPES))
def test_the_explained_recipe_has_all_keys_and_is_read_back_to_the_same(name: str, tmp_path: Path) -> None:
    config = load_any(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(explained(config))
    assert load_any(str(path)) == config
    lines = path.read_text().splitlines()
    content = yaml.safe_load(path.read_text())
    assert sum(line.lstrip().startswith("# ") for line in lines) == len(leaf_keys(content))
    assert leaf_keys(content) == list(flat_keys(config.model_dump()))


def test_the_packaged_recipes_have_ten_to_twenty_four_keys() -> None:
    counts = {name: len(leaf_keys(yaml.safe_load(read_recipe_text(name)))) for name in PACKAGED_RECIPES}
    assert min(counts.values()) >= 10
    assert max(counts.values()) <= 24


def test_a_recipe_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(read_recipe_text("demo"), encoding="utf-8")
    assert load_config(str(path)) == load_config("demo")


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


def test_overrides_reach_nested_keys_with_the_types_of_their_yaml() -> None:
    config = load_config(
        "demo",
        [
            "epochs=3",
            "channels_last=false",
            "output=elsewhere/run",
            "precision=bf16",
            "data.root=photos",
            "data.crop_size=[96, 160]",
            "data.val_split=test",
            "model.dap_window=null",
            "model.semantic_embedding=false",
            "model.decoder_width=narrow",
            "optimizer.learning_rate=1e-3",
            "loss.dice=0.5",
        ],
    )
    assert config.epochs == 3
    assert config.channels_last is False
    assert config.output == Path("elsewhere/run")
    assert config.precision == "bf16"
    assert config.data.root == Path("photos")
    assert config.data.crop_size == (96, 160)
    assert config.data.val_split == "test"
    assert config.model.dap_window == 3
    assert config.model.options.semantic_embedding is False
    assert config.model.decoder_width == "narrow"
    assert config.optimizer.learning_rate == 0.001
    assert config.loss.dice == 0.5


def test_what_is_not_overridden_stays_as_the_recipe_has_it() -> None:
    changed, plain = load_config("demo", ["data.flip=0"]), load_config("demo")
    assert changed.data.flip == 0
    assert changed.model_copy(update={"data": changed.data.model_copy(update={"flip": plain.data.flip})}) == plain


def test_of_two_overrides_of_a_key_the_later_one_counts() -> None:
    assert load_config("demo", ["epochs=3", "epochs=5"]).epochs == 5


def test_a_value_may_contain_an_equals_sign() -> None:
    assert load_config("demo", ["output=runs/lr=0.1"]).output == Path("runs/lr=0.1")


def test_options_that_are_null_or_left_out_are_as_the_name_says() -> None:
    for overrides in ([], ["model.semantic_embedding=null", "model.dap_window=null"]):
        for name, is_whole in (("exfuse_tiny", True), ("gcn_tiny", False)):
            options = load_config("demo", [f"model.name={name}", *overrides]).model.options
            assert options.semantic_embedding is options.channel_resolution_embedding is is_whole
            assert options.dap_window == (3 if is_whole else 1)
    assert load_config("demo", ["model.name=gcn_tiny", "model.dap_window=3"]).model.options.dap_window == 3


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


@pytest.mark.parametrize("name", sorted(PRETRAINING_RECIPES))
def test_every_pretraining_recipe_loads_and_its_backbone_is_known(name: str) -> None:
    config = load_pretraining_config(name)
    assert config.output.name == name
    assert config.model.backbone in BACKBONES


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


@pytest.mark.parametrize("name", sorted(TRAINING_RECIPES))
def test_a_dumped_configuration_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_config(
        name,
        [
            "data.root='some folder/photos: new'",
            "data.train_split='on'",
            "data.val_split='0123'",
            "optimizer.weight_decay=1.0e-7",
            "optimizer.learning_rate=0.1000000000000000055",
            "model.weights=null",
            "model.backbone_weights=~/weights.safetensors",
            "model.decoder_width=narrow",
        ],
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(path)) == config
    assert dump_config(load_config(str(path))) == dump_config(config)


@pytest.mark.parametrize("name", sorted(PRETRAINING_RECIPES))
def test_a_dumped_pretraining_configuration_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_pretraining_config(name, ["data.root=photos", "model.head_weights=[0, 0, 0, 0]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_pretraining_config(str(path)) == config


@pytest.mark.parametrize("name", sorted(ABLATION_RECIPES))
def test_every_ablation_recipe_loads_and_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = load_ablation_config(name, ["data.root=photos", "pretrained.plain=a/backbone", "seeds=5"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_ablation_config(str(path)) == config
    assert (config.seeds, config.pretrained.plain) == (5, Path("a/backbone"))


def test_a_network_begins_with_one_thing() -> None:
    assert re.search(
        r"model: .*\bweights\b.*\bbackbone_weights\b", refusal("model.weights=a", "model.backbone_weights=b")
    )


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config("demo")
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3
    with pytest.raises(ValueError, match="frozen"):
        config.data.flip = 0.0


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


def run_of(**settings: int) -> Run:
    overrides = [f"{key}={value}" for key, value in settings.items() if key not in ("samples", "warmup")]
    config = load_config("demo", [*overrides, f"optimizer.warmup_steps={settings.get('warmup', 0)}"])
    model = torch.nn.Module()
    alone = DistContext(0, 1, torch.device("cpu"))
    return Run(config, alone, settings["samples"], model, model, None, (), TrainingState())


@pytest.mark.parametrize("samples", [1, 3, 7, 12, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 30])
@pytest.mark.parametrize(("epochs", "evaluate_every"), [(1, 1), (6, 1), (7, 2), (9, 4), (3, 5)])
def test_evaluations_follow_the_step_that_ends_every_nth_epoch(
    samples: int, batch_size: int, epochs: int, evaluate_every: int
) -> None:
    run = run_of(samples=samples, batch_size=batch_size, epochs=epochs, evaluate_every=evaluate_every)
    ends = [math.ceil(epoch * samples / batch_size) for epoch in range(1, epochs + 1)]
    assert run.total_steps == ends[-1]
    expected = {*ends[evaluate_every - 1 :: evaluate_every], ends[-1]}
    assert {step for step in range(ends[-1] + 1) if run.is_evaluated(step)} == expected


def test_a_million_epochs_take_no_memory() -> None:
    run = run_of(samples=10**6, batch_size=1, epochs=10**6, evaluate_every=10**6)
    tracemalloc.start()
    assert run.total_steps == 10**12
    assert run.is_evaluated(10**12)
    assert not run.is_evaluated(10**12 - 1)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(("warmup", "used"), [(0, 0), (9, 9), (10, 10), (11, 10), (20, 10), (10**9, 10)])
def test_a_warm_up_takes_at_most_half_of_the_steps_and_the_rate_reaches_its_peak(warmup: int, used: int) -> None:
    run = run_of(samples=20, batch_size=1, epochs=1, warmup=warmup)
    assert run.warmup_steps == used
    for schedule in ("polynomial", "cosine"):
        rates = [learning_rate_factor(step, 20, run.warmup_steps, schedule) for step in range(20)]
        assert max(rates) == 1
