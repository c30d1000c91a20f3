"""Reading a trained model, and writing one, whole or not at all; see `exfuse.models.folder`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from exfuse.durable import reason, staged_folder, write_file
from exfuse.errors import CheckpointError, brief
from exfuse.models.exfuse import ExFuse
from exfuse.models.folder import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    WRONG_CONTENT,
    find_model,
    read_info,
    unreadable,
)
from exfuse.models.info import ModelInfo


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


def load_pretrained(source: str | Path) -> tuple[ExFuse, ModelInfo]:
    """Loads a trained network in eval mode.

    Args:
        source: A model folder, or a repository of the Hugging Face hub, such as "someone/exfuse-camvid".

    Raises:
        CheckpointError: If it cannot be found or read, or the weights do not fit the architecture that it names.
    """
    folder = find_model(source)
    info = read_info(folder)
    try:
        model = info.build()
    except WRONG_CONTENT as error:
        raise unreadable(folder, error) from error
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: the weights cannot be loaded ({brief(error)})") from error
    return model.eval(), info
