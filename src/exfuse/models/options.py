"""The switches of the network, declared once."""

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from exfuse.errors import did_you_mean

Decoder = Literal["full", "stride4"]
DecoderWidth = Literal["narrow", "wide"] | int

PAD_MULTIPLE = 32  # image sides are padded to a multiple of this, the stride of the deepest features
LARGEST_NUMBER = 2**16  # of any option; with far larger numbers torch's count of bytes overflows
TYPE_NAMES = {bool: "true or false", int: "a whole number", str: "a name", types.NoneType: "null"}


def _option(default: Any, text: str, high: int = LARGEST_NUMBER, odd: bool = False) -> Any:
    return field(default=default, metadata={"text": text, "high": high, "odd": odd})


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The switches of an `ExFuse` network, declared only here.

    Recipes, `create_model`, the metadata of saved models and the rows of the ablation are derived from this class. The
    defaults are those of the family `exfuse`; `FAMILIES` lists the options that a family sets. `option_text` returns
    the explanation of an option.

    Raises:
        ValueError: If a value has the wrong type or is out of range; the message contains the option's name.
    """

    supervised_features: bool = _option(
        False, "read each stage through the convolutions of its semantic-supervision head"
    )
    gcn_kernel: int = _option(7, "kernel size of the global convolutions, odd", high=255, odd=True)
    semantic_embedding: bool = _option(True, "SEB: multiply each level by the upsampled higher levels")
    semantic_embedding_norm: bool = _option(True, "batch norm on SEB's factors; false is the plain product")
    semantic_embedding_width: int | None = _option(
        None, "channels to which SEB first reduces the higher levels; null is the paper's form", high=4096
    )
    channel_resolution_embedding: bool = _option(
        True, "ECRE: sub-pixel upsampling instead of the first transposed convolution"
    )
    auxiliary_prediction: bool | None = _option(
        None, "auxiliary prediction on ECRE's output in training; null follows channel_resolution_embedding"
    )
    dap_window: int = _option(3, "window of densely adjacent prediction, odd; 1 disables it", high=15, odd=True)
    dap_control_conv: bool = _option(False, "replace DAP by a convolution of size dap_window + 2, as a control")
    decoder: Decoder = _option(  # noqa: RUF009 - a field
        "full", "full upsamples to the image size; stride4 predicts at a quarter of it"
    )
    decoder_width: DecoderWidth = _option(  # noqa: RUF009
        "narrow", "channels of the decoder: narrow (classes), wide (classes x window^2) or a number", high=4096
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            check_option(option.name, getattr(self, option.name))


# The options that a family of models sets; null in a recipe means these values.
FAMILIES: dict[str, dict[str, Any]] = {
    "exfuse": {"semantic_embedding": True, "channel_resolution_embedding": True, "dap_window": 3},
    "gcn": {"semantic_embedding": False, "channel_resolution_embedding": False, "dap_window": 1},
}


def family_defaults(name: str) -> dict[str, Any]:
    """Returns the options that a model's family sets; empty if the family is unknown.

    Args:
        name: A model's name, such as "gcn_resnet50".
    """
    return FAMILIES.get(name.partition("_")[0], {})


def options_of(name: str, changes: Mapping[str, Any]) -> ModelOptions:
    """Returns the options of a named model.

    Args:
        name: The model's name, which determines the defaults through its family.
        changes: Options that differ from these defaults.

    Raises:
        ValueError: If an option is unknown (the message suggests the nearest known one) or a value is invalid.
    """
    for option in changes:
        check_option(option, changes[option])
    return ModelOptions(**(family_defaults(name) | dict(changes)))


def changed_options(name: str, options: ModelOptions) -> dict[str, Any]:
    """Returns the options that differ from the defaults of a model's name."""
    defaults = asdict(options_of(name, {}))
    return {option: value for option, value in asdict(options).items() if value != defaults[option]}


def option_text(option: str) -> str:
    """Returns the one-line explanation of an option."""
    return str(ModelOptions.__dataclass_fields__[option].metadata["text"])


def option_limit(option: str) -> int:
    """Returns the largest number that an option accepts; the smallest is 1."""
    return int(ModelOptions.__dataclass_fields__[option].metadata["high"])


@cache
def option_types() -> dict[str, Any]:
    """Returns the type annotation of each option, in order of declaration."""
    return get_type_hints(ModelOptions)


def check_option(option: str, value: object) -> None:
    """Checks the value of one option; a bool is not accepted as a number.

    Raises:
        ValueError: If the option is unknown or the value is invalid.
    """
    if option not in option_types():
        raise ValueError(f"unknown option {option!r}; {did_you_mean(option, option_types())}")
    check_type(option, value, option_types()[option])
    if type(value) is int and not 1 <= value <= option_limit(option):
        raise ValueError(f"{option} must be 1 to {option_limit(option)}, got {value}")
    if type(value) is int and ModelOptions.__dataclass_fields__[option].metadata["odd"] and value % 2 == 0:
        raise ValueError(f"{option} must be odd, got {value}")


def check_type(name: str, value: object, annotation: Any) -> None:
    """Checks a value against an annotation of plain types and literals.

    Raises:
        ValueError: If the value has another type or a number is too large; the message contains the name.
    """
    if type(value) is int and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{name} must be at most {LARGEST_NUMBER:,} in magnitude")
    allowed = _allowed(annotation)
    if not any(type(value) is kind if isinstance(kind, type) else _is_same(value, kind) for kind in allowed):
        kinds = " or ".join(TYPE_NAMES.get(kind, repr(kind)) for kind in allowed)
        raise ValueError(f"{name} must be {kinds}, got {value!r}")


def _is_same(value: object, literal: object) -> bool:
    return type(value) is type(literal) and value == literal


def _allowed(annotation: Any) -> list[Any]:
    """Returns the types and literals that an annotation allows."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _allowed(part)]
    return [annotation]
