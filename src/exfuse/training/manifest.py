"""The list of a checkpoint's files with their sizes and hashes, and the check against it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exfuse.durable import Digest, digest_of, write_file
from exfuse.errors import CheckpointError

MANIFEST = "manifest.json"


def write_manifest(folder: Path, files: Mapping[str, Digest]) -> str:
    """Writes the manifest of a checkpoint's files, the last of them to be written.

    Args:
        folder: The checkpoint.
        files: Name -> what was written.

    Returns:
        The manifest's own hash.

    Raises:
        OSError: If it cannot be written.
    """
    return write_file(folder / MANIFEST, _encode({name: digest._asdict() for name, digest in files.items()})).sha256


def verify_checkpoint(folder: Path, expected: str | None = None) -> dict[str, Digest]:
    """Checks that every file of a checkpoint is as it was written, to the bit.

    Args:
        folder: The checkpoint.
        expected: The manifest's own hash, where it is known.

    Returns:
        Its files.

    Raises:
        CheckpointError: With the name of the first file that is missing or changed.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: a checkpoint without a readable manifest ({error.strerror})") from error
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointError(f"{path}: not the one that `latest` names by its hash; one of the two is damaged")
    files = _decode(content, path)
    for name, digest in files.items():
        try:
            found = digest_of(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: missing from the checkpoint ({error.strerror})") from error
        if found.size != digest.size:
            raise CheckpointError(f"{folder / name}: {found.size:,} bytes instead of {digest.size:,}; it is damaged")
        if found != digest:
            raise CheckpointError(f"{folder / name}: changed since it was written; the checkpoint is damaged")
    return files


def _encode(files: Mapping[str, Any]) -> bytes:
    """Returns the one way to write a manifest; the first line is the hash of the second."""
    body = json.dumps(files, sort_keys=True)
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n".encode()


def _decode(content: bytes, path: Path) -> dict[str, Digest]:
    try:
        files = json.loads(content.split(b"\n")[1])
        digests = {str(name): Digest(int(row["size"]), str(row["sha256"])) for name, row in files.items()}
        whole = _encode(files) == content
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or any(Path(name).name != name for name in digests):
        raise CheckpointError(f"{path}: changed since it was written; the checkpoint is damaged")
    return digests
