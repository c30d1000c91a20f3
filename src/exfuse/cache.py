"""A cache of files that can be made again: converted models, decoded images, code compiled by libraries."""

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from exfuse.atomic_io import digest_of, file_lock, sync_folder
from exfuse.errors import CheckpointError
from exfuse.manifest import verify_folder, write_manifest

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Returns the cache folder: `EXFUSE_CACHE`, or `exfuse` in the user's cache folder."""
    own = os.environ.get("EXFUSE_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "exfuse").expanduser()


def private_folder(name: str) -> Path:
    """Returns a folder in the cache, created if missing.

    Raises:
        OSError: If it cannot be created, or if another user can write to it and so change the models computed from it.
    """
    root = cache_folder()
    for folder in (root, root / name):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sys.platform != "win32":
            found = folder.stat()
            if found.st_uid not in (os.geteuid(), 0) or found.st_mode & WRITABLE_BY_OTHERS:
                raise PermissionError(
                    errno.EPERM, f"other users can write to {folder}; chmod go-w it, or set EXFUSE_CACHE"
                )
    return root / name


def kept(kind: str, name: str, write: Callable[[Path], None]) -> Path:
    """Returns a folder in the cache, created now unless it exists and is unchanged since it was written.

    Args:
        kind: Kind of content, the name of the folder's parent.
        name: Identifies the content: equal names mean equal content.
        write: Fills an empty folder.

    Raises:
        OSError: If the cache cannot be used or written to.
    """
    parent = private_folder(kind)
    target = parent / name
    if _is_whole(target):
        return target
    with TemporaryDirectory(dir=parent, prefix=".") as temporary:
        staged, damaged = Path(temporary) / name, Path(temporary) / "damaged"
        staged.mkdir()
        write(staged)
        write_manifest(staged, {path.name: digest_of(path) for path in staged.iterdir()})
        sync_folder(staged)
        with file_lock(cache_folder() / ".lock", wait=True):
            if not _is_whole(target):  # else another process or thread was faster
                if target.exists():
                    target.rename(damaged)
                staged.rename(target)
    return target


def _is_whole(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except CheckpointError:
        return False
    return True
