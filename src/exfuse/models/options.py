"""The switches of the network, declared once."""

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from exfuse.errors import did_you_mean

Decoder = Literal["full", "stride4"]
DecoderWidth = Literal["narrow", "wide"] | int

PAD_MULTIPLE = 32  # what the sides of an image are padded to: the stride of the deepest features
LARGEST_NUMBER = 2**16  # of any option; far above it torch no longer counts the bytes
TYPE_NAMES = {bool: "true or false", int: "a whole number", str: "a name", types.NoneType: "null"}


def _option(default: Any, text: str, high: int = LARGEST_NUMBER, odd: bool = False) -> Any:
    return field(default=default, metadata={"text": text, "high": high, "odd": odd})


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The switches of an `ExFuse` network: this list is the only one.

    Recipes, `create_model`, the metadata of saved models and the rows of the ablation are made from it. The defaults
    are those of the family `exfuse`; `FAMILIES` has what another family changes. `option_text` explains each.

    Raises:
        ValueError: If a value is of a wrong type or out of range, with the name of the option.
    """

    supervised_features: bool = _option(
        False, "read each stage through the convolutions of its semantic-supervision head"
    )
    gcn_kernel: int = _option(7, "size of the global convolutions' kernels, odd", high=255, odd=True)
    semantic_embedding: bool = _option(True, "SEB: multiply each level with the upsampled higher ones")
    semantic_embedding_norm: bool = _option(True, "batch norm on SEB's factors; false is the plain product")
    semantic_embedding_width: int | None = _option(
        None, "channels that SEB first reduces the higher levels to; null is the paper's form", high=4096
    )
    channel_resolution_embedding: bool = _option(
        True, "ECRE: sub-pixel upsampling in place of the first transposed convolution"
    )
    auxiliary_prediction: bool | None = _option(
        None, "a prediction on ECRE's output while training; null follows channel_resolution_embedding"
    )
    dap_window: int = _option(3, "window of densely adjacent prediction, odd; 1 is without", high=15, odd=True)
    dap_control_conv: bool = _option(False, "a convolution of dap_window + 2 in DAP's place, as a control experiment")
    decoder: Decoder = _option(  # noqa: RUF009 - which is a field
        "full", "full upsamples to the image's size; stride4 predicts at a quarter of it"
    )
    decoder_width: DecoderWidth = _option(  # noqa: RUF009
        "narrow", "channels of the decoder: narrow (classes), wide (classes x window^2) or a number", high=4096
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            check_option(option.name, getattr(self, option.name))


# What a family of models changes of the defaults; a recipe's null means these values.
FAMILIES: dict[str, dict[str, Any]] = {
    "exfuse": {"semantic_embedding": True, "channel_resolution_embedding": True, "dap_window": 3},
    "gcn": {"semantic_embedding": False, "channel_resolution_embedding": False, "dap_window": 1},
}


def family_defaults(name: str) -> dict[str, Any]:
    """Returns what the family of a model changes of the defaults; nothing for a name without a known family.

    Args:
        name: A model's name, such as "gcn_resnet50".
    """
    return FAMILIES.get(name.partition("_")[0], {})


def options_of(name: str, changes: Mapping[str, Any]) -> ModelOptions:
    """Returns the options of a named model.

    Args:
        name: The model's name, whose family has defaults of its own.
        changes: Options that differ from them.

    Raises:
        ValueError: If an option is unknown (with the nearest known one) or a value is wrong.
    """
    for option in changes:
        check_option(option, changes[option])
    return ModelOptions(**(family_defaults(name) | dict(changes)))


def changed_options(name: str, options: ModelOptions) -> dict[str, Any]:
    """Returns the options in which a network differs from what its name says."""
    usual = asdict(options_of(name, {}))
    return {option: value for option, value in asdict(options).items() if value != usual[option]}


def option_text(option: str) -> str:
    """Returns the explanation of an option, in one line."""
    return str(ModelOptions.__dataclass_fields__[option].metadata["text"])


def option_limit(option: str) -> int:
    """Returns the largest number that an option takes; the smallest is 1."""
    return int(ModelOptions.__dataclass_fields__[option].metadata["high"])


@cache
def option_types() -> dict[str, Any]:
    """Returns the annotation of each option, in order."""
    return get_type_hints(ModelOptions)


def check_option(option: str, value: object) -> None:
    """Checks one value; True is no number, though Python counts it as one.

    Raises:
        ValueError: If there is no such option, or it does not take the value.
    """
    if option not in option_types():
        raise ValueError(f"there is no option {option!r}; {did_you_mean(option, option_types())}")
    check_type(option, value, option_types()[option])
    if type(value) is int and not 1 <= value <= option_limit(option):
        raise ValueError(f"{option} must be 1 to {option_limit(option)}, got {value}")
    if type(value) is int and ModelOptions.__dataclass_fields__[option].metadata["odd"] and value % 2 == 0:
        raise ValueError(f"{option} must be odd, got {value}")


def check_type(name: str, value: object, annotation: Any) -> None:
    """Checks a value against an annotation of plain types and literals.

    Raises:
        ValueError: With the name, if it is of another type.
    """
    if type(value) is int and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{name} is larger than {LARGEST_NUMBER:,}, which no network needs")
    allowed = _allowed(annotation)
    if not any(type(value) is kind if isinstance(kind, type) else _is_same(value, kind) for kind in allowed):
        kinds = " or ".join(TYPE_NAMES.get(kind, repr(kind)) for kind in allowed)
        raise ValueError(f"{name} must be {kinds}, got {value!r}")


def _is_same(value: object, literal: object) -> bool:
    return type(value) is type(literal) and value == literal


def _allowed(annotation: Any) -> list[Any]:
    """Returns the types and the literals that an annotation allows."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _allowed(part)]
    return [annotation]
