"""Named models: a name consists of a family and a backbone, for example `exfuse_resnet50`."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from exfuse.errors import ConfigError, brief, did_you_mean
from exfuse.models.backbones import BACKBONES, STRIDES, Backbone
from exfuse.models.backbones.timm import TimmBackbone
from exfuse.models.exfuse import ExFuse
from exfuse.models.options import FAMILIES, check_type, options_of
from exfuse.models.semantic_supervision import SupervisedBackbone
from exfuse.models.storage.metadata import ModelMetadata

TIMM = "timm/"


def list_models() -> list[str]:
    """Returns the names of all models: each family with each registered backbone."""
    return [f"{family}_{backbone}" for family in sorted(FAMILIES, reverse=True) for backbone in BACKBONES]


def create_model(name: str, *, num_classes: int, **options: Any) -> ExFuse:
    """Builds a named model with random weights.

    Args:
        name: One of `list_models()`, or `exfuse_timm/NAME` and `gcn_timm/NAME` for a feature extractor of the timm
            library (`pip install exfuse[timm]`).
        num_classes: Number of classes K, 2 to 255.
        options: Fields of `ModelOptions` that differ from the family's defaults.

    Raises:
        ConfigError: If the name or an option is unknown (the message suggests the nearest known ones), a value has the
            wrong type or is out of range, or the network does not fit in memory.
    """
    try:
        check_type("name", name, str)
        check_type("num_classes", num_classes, int)
        chosen = options_of(name, options)
        backbone = _backbone_of(name)()
        check_features(backbone)
        model = ExFuse(SupervisedBackbone(backbone) if chosen.supervised_features else backbone, num_classes, chosen)
    except ConfigError:
        raise
    except (ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise ConfigError(f"{name if isinstance(name, str) else 'model'}: {brief(error)}") from error
    model.name = name
    return model


def check_features(backbone: Backbone) -> None:
    """Checks that a backbone's outputs have the channels it states and the strides 4 to 32.

    Raises:
        ValueError: If not, or if it states no channels.
    """
    kind = type(backbone).__name__
    if not hasattr(backbone, "channels"):
        raise ValueError(f"{kind} sets no channels; set a tuple of four numbers, on the class or in its constructor")
    side, was_training = 64, backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device))
    except Exception as error:  # of other people's code
        raise ValueError(f"{kind} cannot compute an image of {side} x {side} ({brief(error)})") from error
    backbone.train(was_training)
    found = [tuple(feature.shape[1:]) for feature in features]
    expected = [(c, side // s, side // s) for c, s in zip(backbone.channels, STRIDES, strict=True)]
    if found != expected:
        raise ValueError(
            f"{kind} returns features of the shapes {found} for an image of {side} x {side}; with channels "
            f"{backbone.channels} and strides {STRIDES} they must be {expected}"
        )


def build_model(info: ModelMetadata) -> ExFuse:
    """Builds the network that a saved model's metadata describes, with random weights.

    Raises:
        ConfigError: As `create_model`.
    """
    return create_model(info.name, num_classes=len(info.class_names), **asdict(info.options))


def _backbone_of(name: str) -> Callable[[], Backbone]:
    family, _, backbone = name.partition("_")
    if family in FAMILIES and backbone.startswith(TIMM):
        return lambda: TimmBackbone(backbone.removeprefix(TIMM))
    if family not in FAMILIES or backbone not in BACKBONES:
        raise ConfigError(f"unknown model {name!r}; {did_you_mean(name, list_models())}")
    return BACKBONES[backbone]


def count_parameters(model: torch.nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: torch.nn.Module, height: int = 512, width: int = 512) -> int:
    """Returns the multiply-adds of all convolutions and matrix products for one image, in eval mode.

    Args:
        model: A network on any device; on the meta device nothing is computed.
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
    """Parameters of a named model, and its multiply-adds for one 512 x 512 image."""

    name: str
    parameters: int
    multiply_adds: int


def describe_models(num_classes: int = 21) -> list[ModelSize]:
    """Returns the size of every named model, without allocating memory for any.

    Args:
        num_classes: Number of classes K; 21 is PASCAL VOC.

    Raises:
        ConfigError: If `num_classes` is out of range.
    """
    rows = []
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes)
        rows.append(ModelSize(name, count_parameters(model), count_multiply_adds(model)))
    return rows
