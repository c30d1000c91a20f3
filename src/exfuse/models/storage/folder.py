"""Model folders, in the layout of the Hugging Face hub."""

import json
from pathlib import Path

from exfuse.atomic_io import Digest, digest_of, read_file
from exfuse.errors import CheckpointError, ConfigError, brief, without_path
from exfuse.manifest import MANIFEST, verify_folder
from exfuse.models.storage.metadata import ModelMetadata

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# Files in the manifest: all that are read. The model card is not among them, so that users can edit it.
LISTED = (CONFIG_FILE, WEIGHTS_FILE)
HUB = "hf://"  # prefix of the names of models on the Hugging Face hub


# Exceptions that reading invalid metadata can raise.
WRONG_CONTENT = (ArithmeticError, AttributeError, ConfigError, LookupError, RuntimeError, TypeError, ValueError)


def find_model(source: str | Path) -> Path:
    """Returns the folder of a trained model, downloaded first if the name is `hf://OWNER/NAME`.

    No other name is looked up on the hub, so that a mistyped path never leaves the machine.

    Raises:
        CheckpointError: If the model is not found.
    """
    name = str(source)
    if name.startswith(HUB):
        return _fetch(name)
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(f"{source}: no such model folder; for a model on the hub, use {HUB}OWNER/NAME")
    best = folder / "model"
    if not (folder / CONFIG_FILE).exists() and (best / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: this is a run folder; use {best} for its best model")
    return folder


def _fetch(name: str) -> Path:
    """Downloads a model such as "hf://someone/exfuse-camvid" and returns its folder in the hub's cache."""
    from huggingface_hub import snapshot_download  # imported here because it is slow and local models do not need it

    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=[*LISTED, CARD_FILE, MANIFEST]))
    except Exception as error:  # the base classes of hub and network errors differ between versions
        raise CheckpointError(f"{name}: download from the Hugging Face hub failed ({brief(error)})") from error


def verify_model(folder: Path) -> dict[str, Digest]:
    """Checks the weights and metadata of a model folder against its manifest.

    A folder without a manifest, such as one made by other software, is accepted unchecked.

    Returns:
        The digests of the weights and the metadata, by file name; each file is read once.

    Raises:
        CheckpointError: If a file is missing or was changed since it was written.
    """
    if not (folder / MANIFEST).exists():
        return {name: _digest_of(folder / name) for name in LISTED}
    try:
        files = verify_folder(folder)
    except CheckpointError as error:
        remedy = f"if the change is intended, delete {folder / MANIFEST}"
        raise CheckpointError(f"{error}; {remedy}") from error
    if missing := [name for name in LISTED if name not in files]:
        raise CheckpointError(f"{folder / MANIFEST}: does not list {missing[0]}, so it is not a model's manifest")
    return {name: files[name] for name in LISTED}


def _digest_of(path: Path) -> Digest:
    try:
        return digest_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def read_metadata(folder: Path) -> ModelMetadata:
    """Reads the metadata of a model.

    Raises:
        CheckpointError: If it is missing or invalid.
    """
    try:
        return ModelMetadata.from_json(json.loads(read_file(folder / CONFIG_FILE)))
    except (OSError, *WRONG_CONTENT) as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> CheckpointError:
    """Returns the error for a folder whose metadata could not be read."""
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return CheckpointError(f"{folder / CONFIG_FILE}: unreadable model metadata ({kind}{without_path(error)})")
