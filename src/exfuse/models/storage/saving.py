"""Saving a network that was created in Python as a model folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exfuse.errors import CheckpointError, ConfigError
from exfuse.models.exfuse import ExFuse
from exfuse.models.storage import pretrained
from exfuse.models.storage.folder import WRONG_CONTENT
from exfuse.models.storage.metadata import ModelMetadata


def save_pretrained(
    model: ExFuse,
    folder: str | Path,
    *,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
    ignore_index: int = 255,
    metrics: Mapping[str, Any] | None = None,
    card: str = "",
) -> None:
    """Writes a network as a folder that `Predictor.from_pretrained` and all commands can open.

    Args:
        model: A network created by `create_model`, then trained.
        folder: A new or empty folder.
        class_names: One name per class.
        palette: One RGB colour (0 to 255) per class.
        image_mean: RGB mean, 0 to 1, that was subtracted from the training images.
        image_std: RGB standard deviation on the same scale, by which they were then divided.
        ignore_index: The label that training ignored.
        metrics: Scores and their protocol; any JSON.
        card: The model card, in Markdown; by default only a title.

    Raises:
        ConfigError: If the network was not created by `create_model` or was modified since, or a value is invalid.
        CheckpointError: If the folder is not empty or cannot be written, or a weight is not finite.
    """
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise CheckpointError(f"{folder}: already exists and is not an empty folder; choose a new or empty one")
    if not isinstance(model, ExFuse) or model.name is None:
        raise ConfigError(
            f"save_pretrained needs a network created by create_model, got a {type(model).__name__} from elsewhere"
        )
    info = ModelMetadata(
        name=model.name,
        options=model.options,
        class_names=tuple(class_names),
        palette=tuple(palette),
        ignore_index=ignore_index,
        image_mean=image_mean,
        image_std=image_std,
        metrics=dict(metrics or {}),
    )
    try:
        info = ModelMetadata.from_json(info.to_json())
    except WRONG_CONTENT as error:
        raise ConfigError(f"{folder}: invalid model metadata ({error})") from error
    pretrained.check_restorable(model, info)
    pretrained.save_pretrained(folder, model, info.to_json(), card or f"# {model.name}\n")
