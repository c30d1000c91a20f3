"""Recipes: YAML files with keys of a training run, read into the types of `exfuse.training.config`.

A key that is missing in a recipe has its default. A run records all keys and the recipe version, so that it can be
resumed after defaults have changed or keys have been added.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from exfuse.atomic_io import read_file
from exfuse.errors import ConfigError, brief, did_you_mean, without_path
from exfuse.training.config import RECIPE_VERSION, AblationConfig, PretrainingConfig, RunConfig, TrainingConfig
from exfuse.validation import MAX_YAML, describe, load_yaml

OF_ONE_PROCESS = ("data.root", "data.workers", "model.backbone_weights", "model.weights")
MAX_KEY = 100  # characters of a dotted key; the longest of ours has 33
ConfigType = TypeVar("ConfigType", bound=RunConfig)

# Keys of version 1 that were renamed. Recipes of that version list all keys and have no `recipe_version`.
RENAMED = {
    "accumulation": "gradient_accumulation",
    "optimizer.backbone_factor": "optimizer.backbone_lr_scale",
    "optimizer.gradient_clip": "optimizer.clip_grad_norm",
    "model.plain_prediction": "model.dap_control_conv",
}

# Keys whose default differs from the behaviour before the key existed. In a recipe of version 1, and in the record of a
# run (which lists all keys of its time), a missing key means the value given here.
BEFORE: dict[type[RunConfig], dict[str, Any]] = {PretrainingConfig: {"model": {"head_hidden_width": 0}}}

KINDS: dict[str, type[RunConfig]] = {
    "segmentation": TrainingConfig,
    "classification": PretrainingConfig,
    "ablation": AblationConfig,
}


def recipe_names() -> list[str]:
    """Returns the names of the package's recipes."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml"))


def load_config(recipe: str | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()) -> TrainingConfig:
    """Reads a recipe of `exfuse train` and applies overrides.

    Args:
        recipe: A name of `recipe_names()`, the path of a YAML file, or the keys and values of one.
        overrides: Strings `key=value` with a dotted key and a YAML value; or a mapping with dotted keys or nested
            values.

    Raises:
        ConfigError: If the recipe is not found, or a key or value is invalid.
    """
    return _load(recipe, overrides, TrainingConfig)


def load_pretraining_config(recipe: str, overrides: Sequence[str] = ()) -> PretrainingConfig:
    """Reads a recipe of `exfuse pretrain`; see `load_config`."""
    return _load(recipe, overrides, PretrainingConfig)


def load_ablation_config(recipe: str, overrides: Sequence[str] = ()) -> AblationConfig:
    """Reads a recipe of `exfuse ablate`; see `load_config`."""
    return _load(recipe, overrides, AblationConfig)


def load_any(recipe: str) -> RunConfig:
    """Reads a recipe of the command that its `task` names; without `task`, one of `exfuse train`.

    Raises:
        ConfigError: As `load_config`.
    """
    content = _parse_yaml(read_recipe_text(recipe), recipe)
    task = content.get("task") if isinstance(content, dict) else None
    return _load(recipe, (), KINDS.get(str(task), TrainingConfig))


def dump_config(config: RunConfig) -> str:
    """Returns a configuration as YAML; reading it returns an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def load_recorded(path: Path, kind: type[ConfigType]) -> ConfigType:
    """Reads the configuration recorded in a run folder.

    Raises:
        ConfigError: If it cannot be read or belongs to another command.
    """
    return _load(str(path), (), kind, recorded=True)


def differing_keys(first: RunConfig, second: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys that differ between two configurations and affect training, with both values.

    Keys that only control where data is read from and how often something is written are ignored.
    """
    ignored = {
        "output",
        "checkpoint_every",
        "log_every",
        "max_skipped_steps",
        "data.root",
        "data.workers",
        "data.cache",
    }
    a, b = flat_keys(first.model_dump()), flat_keys(second.model_dump())
    return {key: (a[key], b[key]) for key in a if a[key] != b[key] and key not in ignored}


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the settings that must be equal in all processes of a run, by dotted key: all but the paths of inputs."""
    return {key: value for key, value in flat_keys(config.model_dump()).items() if key not in OF_ONE_PROCESS}


def flat_keys(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
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
        raise ConfigError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, recipe_names())}")
    try:
        return read_file(Path(recipe), MAX_YAML).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{recipe}: not a readable recipe ({without_path(error)})") from error


def recipe_summary(recipe: str) -> str:
    """Returns the first line of a recipe's opening comment."""
    return read_recipe_text(recipe).partition("\n")[0].removeprefix("#").strip()


def explained(config: RunConfig) -> str:
    """Returns a configuration as in `dump_config`, with a one-line explanation above each key."""
    return "".join(f"{line}\n" for line in _explained(config, ""))


def _explained(section: BaseModel, indent: str) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _explained(value, indent + "  ")
        else:
            plain = list(section.model_dump(mode="json", include={key}).values())
            shown = yaml.safe_dump(plain, default_flow_style=True, width=2 * MAX_YAML).strip().removeprefix("[")
            yield f"{indent}# {field.description}"
            yield f"{indent}{key}: {shown.removesuffix(']')}"


def _load(
    recipe: str | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any],
    kind: type[ConfigType],
    recorded: bool = False,
) -> ConfigType:
    """Reads a recipe of any version, or the record of a run, applies overrides and validates the result."""
    content: Any
    if isinstance(recipe, str):
        content = _parse_yaml(read_recipe_text(recipe), recipe)
        if not isinstance(content, dict):
            raise ConfigError(f"{recipe}: expected keys and values, got {type(content).__name__}")
        content.setdefault("output", f"runs/{Path(recipe).stem}")
    else:
        content, recipe = copy.deepcopy(dict(recipe)), "the recipe"
        content.setdefault("recipe_version", RECIPE_VERSION)
    declared = KINDS.get(str(content.get("task")), kind)
    if declared is not kind:
        raise ConfigError(f"{recipe}: this is a recipe for {declared.command}, not for {kind.command}")
    may_lack_keys = recorded or content.get("recipe_version", 1) != RECIPE_VERSION
    _upgrade(content, recipe)
    for section, values in BEFORE.get(kind, {}).items() if may_lack_keys else ():
        given = content.setdefault(section, {})
        if isinstance(given, dict):  # otherwise validation raises an error below
            content[section] = values | given
    changes = flat_keys(dict(overrides)).items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    for key, value in changes:
        _apply(content, key, value, kind)
    if older := [key for key in flat_keys(content) if key in RENAMED]:
        raise ConfigError(f"{recipe}: unknown key {older[0]!r}; it was renamed to {RENAMED[older[0]]!r}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{recipe}: {describe(error, kind)}") from error


def _upgrade(content: dict[str, Any], source: str) -> None:
    """Renames the keys of an older recipe version to the current names, in place."""
    version = content.setdefault("recipe_version", 1)
    if version == RECIPE_VERSION:
        return
    if version != 1:
        raise ConfigError(
            f"{source}: recipe_version {brief(version)} is unknown; this version of exfuse reads 1 to "
            f"{RECIPE_VERSION}, a newer one may read it"
        )
    content["recipe_version"] = RECIPE_VERSION
    for old, new in RENAMED.items():
        *sections, key = old.split(".")
        inner: Any = content
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and key in inner:
            name = new.rpartition(".")[2]
            if name in inner:
                raise ConfigError(f"{source}: {old} is the old name of {new}, which is also set; remove {old}")
            inner[name] = inner.pop(key)


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key or len(key) > MAX_KEY:
        raise ConfigError(f"{override[:MAX_KEY]!r}: expected key=value, for example data.root=photos")
    return key, _parse_yaml(value, key)


def _apply(content: dict[str, Any], key: str, value: Any, kind: type[BaseModel]) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inside = {name: field.annotation for name, field in kind.model_fields.items() if _is_section(field.annotation)}
        if section not in inside:
            raise ConfigError(f"{key}: unknown section {section!r}; {did_you_mean(section, inside)}")
        kind = cast(type[BaseModel], inside[section])
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{key}: in the recipe, {section} is not a mapping of keys to values")
    content[last] = value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not readable as YAML ({brief(error)})") from error
