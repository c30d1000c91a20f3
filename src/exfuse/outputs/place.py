"""Paths of results."""

from pathlib import Path
from tempfile import TemporaryFile

from exfuse.atomic_io import describe_os_error
from exfuse.errors import OutputError


def lies_in(path: Path, folder: Path) -> bool:
    """Returns whether a file is what a folder holds, links followed: an output is not read as an input."""
    return path.resolve().is_relative_to(folder.resolve())


def check_writable(path: Path) -> None:
    """Checks that something can be made at a path, and makes the folders above it.

    Raises:
        OutputError: If it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Returns what to raise where writing failed."""
    return OutputError(f"{path} cannot be written ({describe_os_error(error, path.parent)})")
