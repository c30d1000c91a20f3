"""How a model lies on disk: a folder in the Hugging Face hub's layout, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from exfuse.durable import reason, staged_folder, write_file
from exfuse.errors import CheckpointError

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
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    try:
        with staged_folder(folder) as staged:
            write_file(staged / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
            write_file(staged / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
            write_file(staged / CARD_FILE, card.encode())
    except OSError as error:
        raise CheckpointError(f"{folder}: the model could not be written ({reason(error, folder.parent)})") from error
