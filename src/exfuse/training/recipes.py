"""Recipes: flat YAML files that say everything about a training run, read into the types of `exfuse.training.config`.

A recipe has no defaults and no inheritance: every key stands in it, so what is on the page is what runs.
"""

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from exfuse.atomic_io import read_file
from exfuse.errors import ConfigError, brief, did_you_mean, without_path
from exfuse.training.config import AblationConfig, PretrainingConfig, RunConfig, TrainingConfig
from exfuse.validation import MAX_YAML, describe, load_yaml

OF_ONE_PROCESS = ("data.root", "data.workers", "model.backbone_weights", "model.weights")
MAX_KEY = 100  # characters of a dotted key; ours have 33
ConfigType = TypeVar("ConfigType", bound=RunConfig)

KINDS: dict[str, type[RunConfig]] = {
    "segmentation": TrainingConfig,
    "classification": PretrainingConfig,
    "ablation": AblationConfig,
}


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Reads a recipe of `exfuse train` and applies overrides.

    Args:
        recipe: A name of `recipe_names()` or the path of a YAML file.
        overrides: `key=value` with dotted keys; the value is read as YAML.

    Raises:
        ConfigError: If the recipe is not found, or a key or value is wrong.
    """
    return parse_config(_read(recipe, overrides), recipe, TrainingConfig)


def load_pretraining_config(recipe: str, overrides: Sequence[str] = ()) -> PretrainingConfig:
    """Reads a recipe of `exfuse pretrain`, as `load_config` does."""
    return parse_config(_read(recipe, overrides), recipe, PretrainingConfig)


def load_ablation_config(recipe: str, overrides: Sequence[str] = ()) -> AblationConfig:
    """Reads a recipe of `exfuse ablate`, as `load_config` does."""
    return parse_config(_read(recipe, overrides), recipe, AblationConfig)


def parse_config(content: dict[str, Any], source: str, kind: type[ConfigType]) -> ConfigType:
    """Validates what was read from `source`.

    Raises:
        ConfigError: With the source, the key and the nearest known one.
    """
    meant = KINDS.get(str(content.get("task")), kind)
    if meant is not kind:
        raise ConfigError(f"{source}: this is a recipe for {meant.command}, not for {kind.command}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, kind)}") from error


def dump_config(config: RunConfig) -> str:
    """Returns the configuration as YAML that is read back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def load_recorded(path: Path, kind: type[ConfigType]) -> ConfigType:
    """Reads the configuration that a run left in its folder.

    Raises:
        ConfigError: If it cannot be read or is of another kind of run.
    """
    return parse_config(_read(str(path), ()), str(path), kind)


def differing_keys(first: RunConfig, second: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys in which two configurations would train differently, with the values of each.

    How the data is reached and how often something is written down does not count.
    """
    free = {"output", "checkpoint_every", "log_every", "max_skipped_steps", "data.root", "data.workers", "data.cache"}
    a, b = _flatten(first.model_dump()), _flatten(second.model_dump())
    return {key: (a[key], b[key]) for key in a if a[key] != b[key] and key not in free}


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """Returns what all processes of a run must have alike, by dotted key: all but where each finds its data."""
    return {key: value for key, value in _flatten(config.model_dump()).items() if key not in OF_ONE_PROCESS}


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _recipes() -> Traversable:
    return resources.files("exfuse") / "recipes"


def read_recipe_text(recipe: str) -> str:
    """Returns a recipe's YAML.

    Args:
        recipe: A name of `recipe_names()` or the path of a YAML file.

    Raises:
        ConfigError: If there is no such recipe.
    """
    if recipe in recipe_names():
        return (_recipes() / f"{recipe}.yaml").read_text(encoding="utf-8")
    if not recipe.endswith((".yaml", ".yml")):
        raise ConfigError(f"there is no recipe {recipe!r}; {did_you_mean(recipe, recipe_names())}")
    try:
        return read_file(Path(recipe), MAX_YAML).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{recipe}: not a readable recipe ({without_path(error)})") from error


def recipe_summary(recipe: str) -> str:
    """Returns the first line of a recipe's opening comment."""
    return read_recipe_text(recipe).partition("\n")[0].removeprefix("#").strip()


def _read(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    content = _parse_yaml(read_recipe_text(recipe), recipe)
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe}: expected keys and values, got {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key or len(key) > MAX_KEY:
        raise ConfigError(f"{override[:MAX_KEY]!r}: expected key=value, for example data.root=photos")
    *sections, last = key.split(".")
    for section in sections:
        inner = content.get(section)
        if not isinstance(inner, dict):
            hint = did_you_mean(section, [name for name, field in content.items() if isinstance(field, dict)])
            raise ConfigError(f"{key}: there is no section {section!r}; {hint}")
        content = inner
    content[last] = _parse_yaml(value, key)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not readable as YAML ({brief(error)})") from error
