"""Checks of output paths."""

from pathlib import Path
from tempfile import TemporaryFile

from exfuse.atomic_io import describe_os_error
from exfuse.errors import OutputError


def lies_in(path: Path, folder: Path) -> bool:
    """Returns whether a path is in a folder after links are resolved, so that outputs are not read as inputs."""
    return path.resolve().is_relative_to(folder.resolve())


def check_writable(path: Path) -> None:
    """Checks that a path can be created, and creates the folders above it.

    Raises:
        OutputError: If it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """Returns the error to raise when a path cannot be written."""
    return OutputError(f"{path} cannot be written ({describe_os_error(error, path.parent)})")
