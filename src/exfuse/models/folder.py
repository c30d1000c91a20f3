"""How a model lies on disk: a folder in the Hugging Face hub's layout, written whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from exfuse.errors import CheckpointError, brief

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


def save_pretrained(folder: Path, model: nn.Module, config: dict[str, Any], card: str) -> None:
    """Writes a model folder, replacing one that is there only once the new one is complete.

    Args:
        folder: Where to.
        model: The network.
        config: The content of `config.json`.
        card: The model card, in Markdown.

    Raises:
        CheckpointError: If it cannot be written.
    """
    staged = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        (staged / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (staged / CARD_FILE).write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the model could not be written ({brief(error)})") from error
