"""Files and folders that are there whole or not at all, also after a crash or a full disk; one writer at a time."""

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

CHUNK = 4 * 2**20  # bytes written at a time


class Digest(NamedTuple):
    """What a file held when it was written.

    Attributes:
        size: In bytes.
        sha256: In hexadecimal digits.
    """

    size: int
    sha256: str


def write_file(path: Path, content: bytes) -> Digest:
    """Writes a new file and waits until it is on the disk.

    Raises:
        OSError: If it cannot be written.
    """
    view = memoryview(content)
    with path.open("wb") as file:
        for start in range(0, len(view), CHUNK):
            file.write(view[start : start + CHUNK])
        file.flush()
        os.fsync(file.fileno())
    return Digest(len(view), hashlib.sha256(view).hexdigest())


def digest_of(path: Path) -> Digest:
    """Returns the size and the hash of a file, read in pieces.

    Raises:
        OSError: If it cannot be read.
    """
    hashed, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    return Digest(size, hashed.hexdigest())


def replace_file(path: Path, text: str) -> None:
    """Gives a file new content; at any moment it holds the old or the new one.

    Raises:
        OSError: If it cannot be written; the old content is untouched.
    """
    staged = path.with_name(f".{path.name}.partial")
    write_file(staged, text.encode())
    staged.replace(path)
    sync_folder(path.parent)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` once the block has ended without an error.

    An older `folder` is moved aside, and removed when the new one is in its place.

    Raises:
        OSError: If something cannot be written; an older `folder` is untouched.
    """
    staged, previous = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "previous"))
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        sync_folder(staged)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        try:
            staged.rename(folder)
        except BaseException:
            with suppress(OSError):
                previous.rename(folder)
            raise
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Gives a folder its name again if `staged_folder` was cut off between taking it and giving it to the new one."""
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.is_dir() and not folder.exists():
        with suppress(OSError):  # what cannot be renamed cannot be written to either, which says so
            previous.rename(folder)


@contextmanager
def alone(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Keeps other processes from the same block while it runs, and yields whether it could.

    The system lets go of it when this process ends, however it ends; processes forked meanwhile don't hold it. The
    file itself stays. It keeps out other processes, not other threads of this one, and nobody on Windows or where the
    file system knows no locks.

    Args:
        lock: A file that is made if it is not there.
        wait: Wait until the others are done.

    Raises:
        OSError: If the file cannot be made.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    with lock.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            yield error.errno not in (errno.EAGAIN, errno.EACCES)  # which say that another one has it
        else:
            yield True


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk.

    Raises:
        OSError: If the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError, folder: Path) -> str:
    """Returns what went wrong in words; for a full disk with the bytes that are left there.

    Args:
        error: What the operating system said.
        folder: Where the writing was to be done; it need not exist.
    """
    said = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return said
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{said}: {shutil.disk_usage(existing).free:,} bytes are free in {existing}"
