"""A trained model as a folder in the Hugging Face hub's layout: weights, what they mean, and a card."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from exfuse.errors import CheckpointError, ConfigError, brief
from exfuse.models.builders import Parts, create_model
from exfuse.models.exfuse import ExFuse
from exfuse.models.folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

# What reading a description and building the network it names raise where the content makes no sense.
_WRONG_CONTENT = (ArithmeticError, AttributeError, ConfigError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class ModelInfo:
    """What a network's weights alone do not say.

    Attributes:
        name: The model's name in `MODELS`.
        parts: The keyword arguments it was built with.
        class_names: One a class.
        palette: One RGB colour (0-255) a class.
        ignore_index: The label that was left out in training.
        image_mean: RGB mean of the training images, 0 to 1, subtracted from the input.
        image_std: RGB standard deviation, by which the input is then divided.
        metrics: What was measured, and how; any JSON.
    """

    name: str
    parts: Parts
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return {
            "model_type": "exfuse",
            "architecture": {"name": self.name, "num_classes": len(self.class_names), **self.parts},
            "id2label": {str(index): name for index, name in enumerate(self.class_names)},
            "palette": [list(color) for color in self.palette],
            "ignore_index": self.ignore_index,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "input": {"channels": "RGB", "range": [0, 1], "resize": None},
            "metrics": self.metrics,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelInfo":
        """Reads the content of `config.json`.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry has a wrong type.
            ValueError: If an entry has a wrong value.
        """
        architecture = dict(content["architecture"])
        name, num_classes = str(architecture.pop("name")), int(architecture.pop("num_classes"))
        labels = content["id2label"]
        palette = tuple((int(r), int(g), int(b)) for r, g, b in content["palette"])
        if len(labels) != num_classes or len(palette) != num_classes:
            raise ValueError(f"{num_classes} classes, {len(labels)} names and {len(palette)} colours")
        if not all(0 <= value <= 255 for color in palette for value in color):
            raise ValueError("a colour is not three numbers from 0 to 255")
        mean, std = _three_floats(content["image_mean"]), _three_floats(content["image_std"])
        if not all(math.isfinite(value) for value in mean + std) or min(std) <= 0:
            raise ValueError("image_mean and image_std must be finite, image_std positive")
        return cls(
            name=name,
            parts=cast(Parts, architecture),
            class_names=tuple(str(labels[str(index)]) for index in range(num_classes)),
            palette=palette,
            ignore_index=int(content["ignore_index"]),
            image_mean=_three_floats(content["image_mean"]),
            image_std=_three_floats(content["image_std"]),
            metrics=dict(content.get("metrics", {})),
        )

    def build(self) -> ExFuse:
        """Builds the network with random weights."""
        return create_model(self.name, num_classes=len(self.class_names), **self.parts)


def load_pretrained(source: str | Path) -> tuple[ExFuse, ModelInfo]:
    """Loads a trained network in eval mode.

    Args:
        source: A model folder, or a repository of the Hugging Face hub, such as "someone/exfuse-camvid".

    Raises:
        CheckpointError: If it cannot be found or read, or the weights do not fit the architecture that it names.
    """
    folder = _model_folder(source)
    try:
        info = ModelInfo.from_json(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        model = info.build()
    except (OSError, *_WRONG_CONTENT) as error:
        reason = f"{type(error).__name__}: {brief(error)}"
        raise CheckpointError(f"{folder / CONFIG_FILE}: not a readable model description ({reason})") from error
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: the weights cannot be loaded ({brief(error)})") from error
    return model.eval(), info


def _model_folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if str(source).count("/") != 1 or folder.parent.is_dir():
        raise CheckpointError(f"{source}: no such model folder")
    try:
        return Path(snapshot_download(str(source), allow_patterns=[WEIGHTS_FILE, CONFIG_FILE, CARD_FILE]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(f"{source}: neither a model folder nor a model of the hub ({brief(error)})") from error


def _three_floats(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
