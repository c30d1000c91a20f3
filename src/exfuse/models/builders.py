"""Named models: each name is a backbone and a choice of parts."""

from collections.abc import Callable
from functools import partial
from types import NoneType
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, Unpack, cast, get_args, get_origin, get_type_hints

import torch
from torch.utils.flop_counter import FlopCounterMode

from exfuse.errors import ConfigError, brief, did_you_mean
from exfuse.models import backbones
from exfuse.models.backbones import Backbone
from exfuse.models.exfuse import Decoder, DecoderWidth, ExFuse
from exfuse.models.semantic_supervision import SupervisedBackbone
from exfuse.models.timm_backbone import TimmBackbone

TIMM_SEPARATOR = "_timm/"
LARGEST_NUMBER = 2**16  # of any argument; far above it torch no longer counts the bytes
TYPE_NAMES = {bool: "true or false", int: "a whole number", str: "a name", NoneType: "null"}


class DecoderParts(TypedDict, total=False):
    """The keyword arguments of `ExFuse`, where they are explained."""

    gcn_kernel: int
    semantic_embedding: bool
    semantic_embedding_norm: bool
    semantic_embedding_width: int | None
    channel_resolution_embedding: bool
    auxiliary_prediction: bool | None
    dap_window: int
    dap_control_conv: bool
    decoder: Decoder
    decoder_width: DecoderWidth


class Parts(DecoderParts, total=False):
    """What a named model can be built with: all of these, and how its backbone is read."""

    supervised_features: bool


class Builder(Protocol):
    """Makes a network with fresh weights."""

    def __call__(self, *, num_classes: int, **parts: Unpack[Parts]) -> ExFuse:
        """Builds the network for `num_classes` classes; `parts` override the model's own choice."""


def _exfuse(
    make_backbone: Callable[[], Backbone],
    *,
    num_classes: int,
    supervised_features: bool = False,
    **parts: Unpack[DecoderParts],
) -> ExFuse:
    backbone = make_backbone()
    return ExFuse(SupervisedBackbone(backbone) if supervised_features else backbone, num_classes, **parts)


def _gcn(make_backbone: Callable[[], Backbone], *, num_classes: int, **parts: Unpack[Parts]) -> ExFuse:
    chosen = Parts(semantic_embedding=False, channel_resolution_embedding=False, dap_window=1)
    chosen.update(parts)
    return _exfuse(make_backbone, num_classes=num_classes, **chosen)


FAMILIES: dict[str, Callable[..., ExFuse]] = {"exfuse": _exfuse, "gcn": _gcn}

MODELS: dict[str, Builder] = {
    "gcn_tiny": partial(_gcn, backbones.tiny),
    "gcn_resnet18": partial(_gcn, backbones.resnet18),
    "gcn_resnet34": partial(_gcn, backbones.resnet34),
    "gcn_resnet34_rearranged": partial(_gcn, backbones.resnet34_rearranged),
    "gcn_resnet50": partial(_gcn, backbones.resnet50),
    "gcn_resnet101": partial(_gcn, backbones.resnet101),
    "gcn_resnext50": partial(_gcn, backbones.resnext50),
    "gcn_resnext101": partial(_gcn, backbones.resnext101),
    "gcn_resnext101_rearranged": partial(_gcn, backbones.resnext101_rearranged),
    "gcn_resnext131": partial(_gcn, backbones.resnext131),
    "exfuse_tiny": partial(_exfuse, backbones.tiny),
    "exfuse_resnet18": partial(_exfuse, backbones.resnet18),
    "exfuse_resnet34": partial(_exfuse, backbones.resnet34),
    "exfuse_resnet34_rearranged": partial(_exfuse, backbones.resnet34_rearranged),
    "exfuse_resnet50": partial(_exfuse, backbones.resnet50),
    "exfuse_resnet101": partial(_exfuse, backbones.resnet101),
    "exfuse_resnext50": partial(_exfuse, backbones.resnext50),
    "exfuse_resnext101": partial(_exfuse, backbones.resnext101),
    "exfuse_resnext101_rearranged": partial(_exfuse, backbones.resnext101_rearranged),
    "exfuse_resnext131": partial(_exfuse, backbones.resnext131),
}


def create_model(name: str, *, num_classes: int, **parts: Unpack[Parts]) -> ExFuse:
    """Builds a named model with random weights.

    Args:
        name: A key of `MODELS`, or `exfuse_timm/NAME` and `gcn_timm/NAME` for a feature extractor of the timm library
            (`pip install exfuse[timm]`).
        num_classes: K, at least 2.
        parts: Switches of the paper's parts and other arguments of `ExFuse`; `supervised_features` reads each stage
            through the convolutions of its semantic-supervision head (see `SupervisedBackbone`).

    Raises:
        ConfigError: If the name or an argument is unknown (with the nearest known ones), a value is of a wrong type or
            out of range, or the network is too large for the memory.
    """
    _check_arguments({"name": name, "num_classes": num_classes, **parts})
    try:
        model = _builder(name)(num_classes=num_classes, **parts)
    except (ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise ConfigError(f"{name}: {brief(error)}") from error
    model.made_from = (name, parts)
    return model


def _check_arguments(arguments: dict[str, Any]) -> None:
    """Checks names and types against the annotations of `Parts`; True is no number, though Python counts it as one."""
    expected: dict[str, Any] = {"name": str, "num_classes": int} | get_type_hints(Parts)
    for argument, value in arguments.items():
        if argument not in expected:
            raise ConfigError(f"{arguments['name']} has no argument {argument!r}; {did_you_mean(argument, expected)}")
        if type(value) is int and value > LARGEST_NUMBER:
            raise ConfigError(
                f"{arguments['name']}: {argument} is larger than {LARGEST_NUMBER:,}, which no network needs"
            )
        allowed = _allowed(expected[argument])
        if not any(type(value) is kind or (isinstance(kind, str) and value == kind) for kind in allowed):
            kinds = " or ".join(TYPE_NAMES.get(kind, repr(kind)) for kind in allowed)
            raise ConfigError(f"{arguments['name']}: {argument} must be {kinds}, got {value!r}")


def _allowed(annotation: Any) -> list[Any]:
    """Returns the types and the words that an annotation allows."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [kind for part in get_args(annotation) for kind in _allowed(part)] or [annotation]


def _builder(name: str) -> Builder:
    family, separator, timm_name = name.partition(TIMM_SEPARATOR)
    if separator and family in FAMILIES:
        return partial(FAMILIES[family], partial(TimmBackbone, timm_name))
    if name not in MODELS:
        raise ConfigError(f"there is no model {name!r}; {did_you_mean(name, MODELS)}")
    return MODELS[name]


def count_parameters(model: torch.nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: torch.nn.Module, height: int = 512, width: int = 512) -> int:
    """Returns the multiply-adds of all convolutions and matrix products for one image, in eval.

    Args:
        model: A network on any device, the meta device (where it costs no time) included.
        height: Image height in pixels.
        width: Image width in pixels.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, height, width, device=device))
    model.train(was_training)
    return cast(int, counter.get_total_flops()) // 2


class ModelSize(NamedTuple):
    """What a named model holds and what one 512 x 512 image costs it."""

    name: str
    parameters: int
    multiply_adds: int


def describe_models(num_classes: int = 21) -> list[ModelSize]:
    """Returns the size of every named model, without allocating one.

    Args:
        num_classes: K of the models that are counted; 21 is PASCAL VOC.

    Raises:
        ConfigError: If it is out of range.
    """
    rows = []
    for name in MODELS:
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes)
        rows.append(ModelSize(name, count_parameters(model), count_multiply_adds(model)))
    return rows
