"""Recipes: what they hold, their defaults and overrides, and the schedule that follows from them."""

import math
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.distributed import DistContext
from exfuse.models.backbones import BACKBONES
from exfuse.models.registry import create_model
from exfuse.training.checkpoint import TrainingState
from exfuse.training.optim import learning_rate_factor
from exfuse.training.recipes import (
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
from support.recipes import DEMO_KEYS, leaf_keys

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


def without_key(content: dict[str, Any], key: str) -> dict[str, Any]:
    *sections, last = key.split(".")
    inner = content
    for section in sections:
        inner = inner[section]
    del inner[last]
    return content


SECTIONS = ["data", "model", "loss", "optimizer"]


def test_the_packaged_recipes_are_those_we_know_of() -> None:
    assert set(recipe_names()) == PACKAGED_RECIPES
    assert recipe_names() == sorted(PACKAGED_RECIPES)


@pytest.mark.parametrize("name", sorted(TRAINING_RECIPES))
def test_every_training_recipe_loads_and_its_model_can_be_built(name: str) -> None:
    config = load_config(name)
    assert config.output.name == name
    with torch.device("meta"):
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


@pytest.mark.parametrize("name", sorted(PRETRAINING_RECIPES))
def test_every_pretraining_recipe_loads_and_its_backbone_is_known(name: str) -> None:
    config = load_pretraining_config(name)
    assert config.output.name == name
    assert config.model.backbone in BACKBONES


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


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config("demo")
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3
    with pytest.raises(ValueError, match="frozen"):
        config.data.flip = 0.0


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
