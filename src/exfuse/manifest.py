"""Manifests list the files of a folder that we wrote, with sizes and hashes, so that any later change is noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exfuse.atomic_io import Digest, digest_of, read_file, write_file
from exfuse.errors import CheckpointError

MANIFEST = "manifest.json"
EDITABLE = "editable"


def write_manifest(folder: Path, files: Mapping[str, Digest], editable: Mapping[str, Digest] | None = None) -> str:
    """Writes a folder's manifest, to be called after all other files are written.

    Args:
        folder: The folder.
        files: Name -> size and hash.
        editable: The same for files that people may edit or remove: they are checked before a folder is replaced, but
            not when it is read.

    Returns:
        The manifest's own hash.

    Raises:
        OSError: If it cannot be written.
    """
    rows = {name: digest._asdict() for name, digest in files.items()}
    rows |= {name: digest._asdict() | {EDITABLE: True} for name, digest in (editable or {}).items()}
    return write_file(folder / MANIFEST, _encode(rows)).sha256


def verify_folder(folder: Path, expected: str | None = None, editable: bool = False) -> dict[str, Digest]:
    """Checks that every file in a folder's manifest is unchanged, to the bit.

    Args:
        folder: A checkpoint, a model, an export or a folder in the cache.
        expected: The manifest's own hash, if known.
        editable: Whether to check the editable files as well.

    Returns:
        Name -> size and hash of the files that were checked.

    Raises:
        CheckpointError: With the name of the first file that is missing or changed.
    """
    path = folder / MANIFEST
    try:
        content = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the manifest cannot be read ({error.strerror})") from error
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointError(f"{path}: its hash differs from the one in `latest`; one of the two is damaged")
    files = _decode(content, path, editable)
    for name, digest in files.items():
        try:
            found = digest_of(folder / name)
        except OSError as error:
            raise CheckpointError(
                f"{folder / name}: listed in the manifest, but cannot be read ({error.strerror})"
            ) from error
        if found.size != digest.size:
            raise CheckpointError(f"{folder / name}: damaged: {found.size:,} bytes instead of {digest.size:,}")
        if found != digest:
            raise CheckpointError(f"{folder / name}: damaged: its content changed since it was written")
    return files


def _encode(files: Mapping[str, Any]) -> bytes:
    """Returns the only valid encoding of a manifest: two lines, the first being the hash of the second."""
    body = json.dumps(files, sort_keys=True)
    return f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n".encode()


def _decode(content: bytes, path: Path, editable: bool) -> dict[str, Digest]:
    try:
        files = json.loads(content.split(b"\n")[1])
        digests = {
            str(name): Digest(int(row["size"]), str(row["sha256"]))
            for name, row in files.items()
            if editable or not row.get(EDITABLE)
        }
        whole = _encode(files) == content
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or any(Path(name).name != name for name in digests):
        raise CheckpointError(f"{path}: damaged: its content changed since it was written")
    return digests
