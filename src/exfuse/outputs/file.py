"""Single files of results. What proves who wrote a JSON file is a seal in it: the command and a hash of the rest."""

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
    """Checks that a result may be written to a file, before it takes hours to find one; makes its folder.

    Args:
        path: Where nothing is, or what `write_result` of the same command left.
        command: Who writes.

    Raises:
        OutputError: If something else is there, or nothing can be written there.
    """
    if os.path.lexists(path) and not _is_sealed(path, command):
        raise OutputError(f"{path} exists and was not written by {command}; choose another output")
    check_writable(path)


@dataclass
class NewFile:
    """A file that is being written.

    Attributes:
        file: To write into.
        path: Where it is once it is whole.
    """

    file: BinaryIO
    path: Path


@contextmanager
def new_file(path: Path) -> Iterator[NewFile]:
    """Yields a file that is at `path` once the block has ended without an error.

    If something has come there in the meantime, it takes the next free name: what took hours is not thrown away.

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
        path: As `check_file` has accepted it. If something else has come there since, the next free name is taken.
        command: Who writes.
        content: What to write; JSON, without numbers that are not finite.

    Returns:
        Where it is.

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
    """Returns the one way to write a result: any other bytes are somebody else's."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (
        json.dumps(content | {SEAL: {"command": command, "sha256": digest}}, indent=2, allow_nan=False) + "\n"
    ).encode()
