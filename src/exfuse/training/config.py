"""Recipes: flat YAML files that say everything about a training run, read into closed types.

A recipe has no defaults and no inheritance: every key below stands in it, so what is on the page is what runs.
"""

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from exfuse.errors import ConfigError, brief, did_you_mean
from exfuse.models.builders import Parts
from exfuse.validation import describe

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
CropSide = Annotated[int, Field(ge=64, multiple_of=32)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class DataConfig(_Section):
    """What is trained on. `root` is a folder or a dataset file; None in a recipe means the user must say it."""

    root: Path | None
    train_split: str
    val_split: str
    crop_size: tuple[CropSide, CropSide]
    scale: tuple[Positive, Positive]
    flip: Fraction
    brightness: Fraction
    contrast: Fraction
    saturation: Fraction
    image_mean: tuple[Fraction, Fraction, Fraction]
    image_std: tuple[Positive, Positive, Positive]
    workers: Annotated[int, Field(ge=0, le=64)]

    @model_validator(mode="after")
    def _ordered(self) -> "DataConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"the scale range {list(self.scale)} is empty")
        return self


class ModelConfig(_Section):
    """Which network: a name of `exfuse models`, and arguments of `ExFuse`; a part that is null is as the name says."""

    name: str
    gcn_kernel: Annotated[int, Field(ge=1)]
    semantic_embedding: bool | None
    semantic_embedding_norm: bool
    channel_resolution_embedding: bool | None
    auxiliary_prediction: bool | None
    dap_window: Literal[1, 3, 5] | None
    decoder: Literal["full", "stride4"]
    decoder_width: Literal["wide", "narrow"] | Annotated[int, Field(ge=1)]
    backbone_weights: Path | None

    def parts(self) -> Parts:
        """Returns the keyword arguments that the recipe sets."""
        return cast(Parts, self.model_dump(exclude={"name", "backbone_weights"}, exclude_none=True))


class LossConfig(_Section):
    """The weighted sum that is minimised; see `SegmentationLoss`."""

    class_weights: Literal["none", "enet", "median_frequency"]
    ohem: bool
    dice: Annotated[float, Field(ge=0)]
    lovasz: Annotated[float, Field(ge=0)]
    auxiliary: Annotated[float, Field(ge=0)]


class OptimizerConfig(_Section):
    """How it is minimised. `momentum` is that of SGD and Muon. `gradient_clip` 0 is without."""

    name: Literal["adamw", "sgd", "muon"]
    learning_rate: Positive
    backbone_factor: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    momentum: Fraction
    schedule: Literal["polynomial", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    gradient_clip: Annotated[float, Field(ge=0)]


class TrainingConfig(_Section):
    """One training run.

    `batch_size` counts the samples of one optimizer step over all processes; `accumulation` cuts it into that many
    forward passes. `ema_decay` 0 is without. `evaluate_every` counts epochs, `checkpoint_every` and `log_every` steps.
    """

    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    accumulation: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    evaluate_every: Annotated[int, Field(ge=1)]
    checkpoint_every: Annotated[int, Field(ge=1)]
    log_every: Annotated[int, Field(ge=1)]
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _divisible(self) -> "TrainingConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        return self


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Reads a recipe and applies overrides.

    Args:
        recipe: A name of `recipe_names()` or the path of a YAML file.
        overrides: `key=value` with dotted keys; the value is read as YAML.

    Raises:
        ConfigError: If the recipe is not found, or a key or value is wrong.
    """
    content = _read_recipe(recipe)
    for override in overrides:
        _apply(content, override)
    return parse_config(content, recipe)


def parse_config(content: object, source: str) -> TrainingConfig:
    """Validates what was read from `source`.

    Raises:
        ConfigError: With the source, the key and the nearest known one.
    """
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, TrainingConfig)}") from error


def dump_config(config: TrainingConfig) -> str:
    """Returns the configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def differing_keys(first: TrainingConfig, second: TrainingConfig) -> list[str]:
    """Returns the dotted keys in which two configurations would train differently.

    How the data is reached and how often something is written down does not count.
    """
    free = {"output", "checkpoint_every", "log_every", "data.root", "data.workers"}
    a, b = _flatten(first.model_dump()), _flatten(second.model_dump())
    return [key for key in a if a[key] != b[key] and key not in free]


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
        return Path(recipe).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{recipe}: not a readable recipe ({error})") from error


def recipe_summary(recipe: str) -> str:
    """Returns the first line of a recipe's opening comment."""
    return read_recipe_text(recipe).partition("\n")[0].removeprefix("#").strip()


def _read_recipe(recipe: str) -> dict[str, Any]:
    content = _parse_yaml(read_recipe_text(recipe), recipe)
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe}: expected keys and values, got {type(content).__name__}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: expected key=value, for example data.root=photos")
    *sections, last = key.split(".")
    for section in sections:
        inner = content.get(section)
        if not isinstance(inner, dict):
            hint = did_you_mean(section, [name for name, field in content.items() if isinstance(field, dict)])
            raise ConfigError(f"{key}: there is no section {section!r}; {hint}")
        content = inner
    content[last] = _parse_yaml(value, override)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not readable as YAML ({brief(error)})") from error
