"""How a model lies on disk: a folder in the Hugging Face hub's layout."""

import json
from pathlib import Path

from exfuse.atomic_io import Digest, digest_of, read_file
from exfuse.errors import CheckpointError, ConfigError, brief, without_path
from exfuse.manifest import MANIFEST, verify_folder
from exfuse.models.storage.metadata import ModelMetadata

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# What the manifest lists: all that is read. The card is for people, who may edit it.
LISTED = (CONFIG_FILE, WEIGHTS_FILE)
HUB = "hf://"  # what the name of a model of the Hugging Face hub begins with


# What reading a description raises where its content makes no sense.
WRONG_CONTENT = (ArithmeticError, AttributeError, ConfigError, LookupError, RuntimeError, TypeError, ValueError)


def find_model(source: str | Path) -> Path:
    """Returns the folder of a trained model, fetched if it is named as one of the Hugging Face hub.

    Nothing but `hf://OWNER/NAME` is asked of the hub: a path with a slip in it must not leave the machine.

    Raises:
        CheckpointError: If there is none.
    """
    name = str(source)
    if name.startswith(HUB):
        return _fetch(name)
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(f"{source}: no such model folder; a model of the hub is named {HUB}OWNER/NAME")
    best = folder / "model"
    if not (folder / CONFIG_FILE).exists() and (best / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: the folder of a run; its best model is {best}")
    return folder


def _fetch(name: str) -> Path:
    """Returns the folder in the hub's cache for a name such as "hf://someone/exfuse-camvid"."""
    from huggingface_hub import snapshot_download  # a slow import, which what lies on the disk does without

    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=[*LISTED, CARD_FILE, MANIFEST]))
    except Exception as error:  # of the hub or of the network; their bases change from version to version
        raise CheckpointError(f"{name}: not fetched from the Hugging Face hub ({brief(error)})") from error


def verify_model(folder: Path) -> dict[str, Digest]:
    """Checks the weights and the description of a model folder against its manifest, if there is one.

    A folder without one, which others may have made, is taken as it is.

    Returns:
        What the weights and the description hold; each file was read once.

    Raises:
        CheckpointError: If one is missing or not as it was written.
    """
    if not (folder / MANIFEST).exists():
        return {name: _digest_of(folder / name) for name in LISTED}
    try:
        files = verify_folder(folder)
    except CheckpointError as error:
        remedy = f"if it was changed on purpose, delete {folder / MANIFEST}"
        raise CheckpointError(f"{error}; {remedy}") from error
    if missing := [name for name in LISTED if name not in files]:
        raise CheckpointError(f"{folder / MANIFEST}: does not list {missing[0]}; it is not that of a model")
    return {name: files[name] for name in LISTED}


def _digest_of(path: Path) -> Digest:
    try:
        return digest_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def read_metadata(folder: Path) -> ModelMetadata:
    """Reads the description of a model.

    Raises:
        CheckpointError: If it is missing or makes no sense.
    """
    try:
        return ModelMetadata.from_json(json.loads(read_file(folder / CONFIG_FILE)))
    except (OSError, *WRONG_CONTENT) as error:
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> CheckpointError:
    """Returns what to raise where the description is at fault."""
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return CheckpointError(f"{folder / CONFIG_FILE}: not a readable model description ({kind}{without_path(error)})")
