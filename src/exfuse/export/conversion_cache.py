"""A cache of model folders converted for an engine. Only converting imports torch."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exfuse.atomic_io import digest_of
from exfuse.cache import cache_folder, kept
from exfuse.errors import CheckpointError, ExFuseError, brief
from exfuse.export.formats.base import MAIN_FILE, ExportFormat
from exfuse.models.storage.folder import CONFIG_FILE, WEIGHTS_FILE, read_metadata

CONVERSION_VERSION = 4  # increase it with every change to the converted files


def cached_conversion(folder: Path, entry: ExportFormat) -> Path:
    """Returns the main file of a converted model folder, from the cache or converted now.

    The cache key is a hash of the folder's content and of the versions of all packages that convert it. A damaged
    conversion is replaced.

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
            raise CheckpointError(f"{folder}: replaced while it was being read; try again")
        entry.write(export_program(model, info), info, staged / name)

    name, kind = f"{MAIN_FILE}{entry.suffix}", entry.suffix.removeprefix(".")
    try:
        return kept(kind, key, convert) / name
    except ExFuseError:
        raise
    except Exception as error:  # from the file system or a library; their exceptions have no common base
        raise CheckpointError(
            f"{folder}: cannot be converted to {cache_folder() / kind / key / name} ({brief(error)}); use the engine "
            "torch, which needs no conversion, or set EXFUSE_CACHE to another folder"
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
