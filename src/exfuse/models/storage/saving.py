"""Writing a network that was made in Python as a model folder."""

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
    """Writes a network as a folder that `Predictor.from_pretrained` and all commands open.

    Args:
        model: What `create_model` returned, trained since.
        folder: A new or an empty folder.
        class_names: One a class.
        palette: One RGB colour (0-255) a class.
        image_mean: RGB mean of the training images, 0 to 1, that was subtracted from the input.
        image_std: RGB standard deviation, by which the input was then divided.
        ignore_index: The label that was left out in training.
        metrics: What was measured, and how; any JSON.
        card: The model card, in Markdown; by default its title alone.

    Raises:
        ConfigError: If the network was not made by `create_model` or was changed since, or a value is wrong.
        CheckpointError: If something is in the folder already, it cannot be written, or a weight is not finite.
    """
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise CheckpointError(f"{folder}: something is there already; a model is written into a new or an empty folder")
    if not isinstance(model, ExFuse) or model.name is None:
        raise ConfigError(
            f"save_pretrained takes what create_model returned, not a {type(model).__name__} made otherwise"
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
        raise ConfigError(f"{folder}: the model cannot be described ({error})") from error
    pretrained.check_restorable(model, info)
    pretrained.save_pretrained(folder, model, info.to_json(), card or f"# {model.name}\n")
