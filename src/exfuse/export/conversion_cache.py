"""A cache of model folders converted for an engine. Only a conversion imports torch."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exfuse.atomic_io import digest_of
from exfuse.cache import cache_folder, kept
from exfuse.errors import CheckpointError, ExFuseError, brief
from exfuse.export.formats.base import MAIN_FILE, ExportFormat
from exfuse.models.storage.folder import CONFIG_FILE, WEIGHTS_FILE, read_metadata

CONVERSION_VERSION = 4  # raised with every change to the converted files


def cached_conversion(folder: Path, entry: ExportFormat) -> Path:
    """Returns the main file of a model folder's converted form, from the cache or converted now.

    The key is made of the folder's content and the versions of all packages that convert it. A damaged conversion is
    replaced.

    Args:
        folder: The model folder.
        entry: The format to convert to.

    Raises:
        CheckpointError: If the model cannot be read or converted, or the cache cannot be written to.
    """
    read_metadata(folder)
    key = _key(folder, entry)

    def convert(staged: Path) -> None:
        from exfuse.export.trace import export_program
        from exfuse.models.storage.pretrained import load_pretrained

        model, info = load_pretrained(folder)
        if _key(folder, entry) != key:
            raise CheckpointError(f"{folder}: it was replaced while it was read; try again")
        entry.write(export_program(model, info), info, staged / name)

    name, kind = f"{MAIN_FILE}{entry.suffix}", entry.suffix.removeprefix(".")
    try:
        return kept(kind, key, convert) / name
    except ExFuseError:
        raise
    except Exception as error:  # of the file system, or of one of several libraries that share no base of errors
        raise CheckpointError(
            f"{folder}: it could not be converted into {cache_folder() / kind / key / name} ({brief(error)}); the "
            "engine torch needs no conversion, and EXFUSE_CACHE can name another folder"
        ) from error


def _key(folder: Path, entry: ExportFormat) -> str:
    parts = [str(CONVERSION_VERSION), *(_version(package) for package in ("exfuse", "torch", *entry.packages))]
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
