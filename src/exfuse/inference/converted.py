"""Models converted for an engine, done once and kept. Knows no torch unless something is to be converted."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exfuse.atomic_io import digest_of
from exfuse.cache import cache_folder, kept
from exfuse.errors import CheckpointError, ExFuseError, brief
from exfuse.models.folder import CONFIG_FILE, WEIGHTS_FILE, read_metadata

CONVERSION = 4  # to be raised with every change to what is converted or how
MAIN_FILE = "model"  # with the suffix of its format


def converted(folder: Path, suffix: str, written_with: tuple[str, ...]) -> Path:
    """Returns the main file of a model folder's converted form, from the cache or made now.

    The cache goes by the content of the folder and by the versions of what converts; what is damaged is made again.

    Args:
        folder: Of the model.
        suffix: Of the format, in `exfuse.inference.conversion.WRITE`.
        written_with: The packages that convert.

    Raises:
        CheckpointError: If the model cannot be read or converted, or the cache cannot be written to.
    """
    read_metadata(folder)
    key = _key(folder, written_with)

    def write(staged: Path) -> None:
        from exfuse.inference.conversion import WRITE, export_program
        from exfuse.models.pretrained import load_pretrained

        model, info = load_pretrained(folder)
        if _key(folder, written_with) != key:
            raise CheckpointError(f"{folder}: it was replaced while it was read; try again")
        WRITE[suffix](export_program(model, info), info, staged / name)

    name, kind = f"{MAIN_FILE}{suffix}", suffix.removeprefix(".")
    try:
        return kept(kind, key, write) / name
    except ExFuseError:
        raise
    except Exception as error:  # of the file system, or of one of several libraries that share no base of errors
        raise CheckpointError(
            f"{folder}: it could not be converted into {cache_folder() / kind / key / name} ({brief(error)}); the "
            "engine torch needs no conversion, and EXFUSE_CACHE can name another folder"
        ) from error


def _key(folder: Path, written_with: tuple[str, ...]) -> str:
    parts = [str(CONVERSION), *(_version(package) for package in ("exfuse", "torch", *written_with))]
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        try:
            parts.append(digest_of(folder / name).sha256)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror})") from error
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return "unknown"
