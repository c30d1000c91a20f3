"""Result files. A seal in each JSON file proves who wrote it: the command and a hash of the other keys."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from exfuse.atomic_io import PARTIAL, atomic_file, free_name, read_file
from exfuse.errors import OutputError
from exfuse.outputs.place import check_writable, unwritable

SEAL = "written_by"


def check_file(path: Path, command: str) -> None:
    """Checks that a result can be written to a path, and creates its folder; call it before hours of work.

    Args:
        path: A free path, or a file that `write_result` has written for the same command.
        command: The writing command.

    Raises:
        OutputError: If something else exists at the path, or it cannot be written.
    """
    if os.path.lexists(path) and not _is_sealed(path, command):
        raise OutputError(f"{path} exists and was not written by {command}; choose another output")
    check_writable(path)


@dataclass
class NewFile:
    """A file that is being written.

    Attributes:
        file: Open for writing.
        path: Where it will be when it is complete.
    """

    file: BinaryIO
    path: Path


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """Yields a file that appears at `path` when the block ends without an error.

    If something else has appeared there meanwhile, the file gets the next free name, so that no work is lost.

    Raises:
        OutputError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unnamed = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    try:
        with atomic_file(unnamed) as file:
            placed = NewFile(file, path)
            yield placed
        placed.path = free_name(path)
        unnamed.rename(placed.path)
    except OSError as error:
        raise unwritable(path, error) from error


def write_result(path: Path, command: str, content: dict[str, Any]) -> Path:
    """Writes a result as JSON with a seal, so that the same command may replace it.

    Args:
        path: Accepted by `check_file`. If something else has appeared there since, the next free name is used.
        command: The writing command.
        content: JSON values; all numbers are finite.

    Returns:
        The path that was written.

    Raises:
        OutputError: If it cannot be written.
    """
    target = path if not os.path.lexists(path) or _is_sealed(path, command) else free_name(path)
    try:
        with atomic_file(target) as file:
            file.write(_sealed(content, command))
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def _is_sealed(path: Path, command: str) -> bool:
    if path.is_symlink():
        return False
    try:
        found = read_file(path)
        content = json.loads(found)
        del content[SEAL]
        return found == _sealed(content, command)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def _sealed(content: dict[str, Any], command: str) -> bytes:
    """Returns the only valid encoding of a result; a file with any other bytes is not ours."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (
        json.dumps(content | {SEAL: {"command": command, "sha256": digest}}, indent=2, allow_nan=False) + "\n"
    ).encode()
