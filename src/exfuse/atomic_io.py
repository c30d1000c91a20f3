"""Atomic file and folder writes, safe against crashes and full disks; file locks."""

import errno
import glob
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

CHUNK = 4 * 2**20  # bytes read or written at a time
PARTIAL = ".exfuse-partial-"  # prefix of files being written; a random number follows
MAX_TEXT = 64 * 2**20  # bytes; limit for files that are read whole: metadata, lists, recipes
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # the file system or its server has no locks


class Digest(NamedTuple):
    """Size and hash of a file's content.

    Attributes:
        size: In bytes.
        sha256: In hexadecimal digits.
    """

    size: int
    sha256: str


def write_file(path: Path, content: bytes) -> Digest:
    """Writes a file and waits until it is on disk.

    Returns:
        The size and hash of the content.

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


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file for reading; pipes and devices, which may block or never end, are refused.

    Raises:
        OSError: If it cannot be opened or is not a regular file.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens without blocking; a plain open of a pipe would wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def read_file(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: The file.
        limit: Maximum size in bytes.

    Raises:
        OSError: If it cannot be read, is not a regular file or is larger than the limit.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            raise OSError(
                errno.EFBIG, f"{os.fstat(file.fileno()).st_size:,} bytes; at most {limit:,} are allowed", str(path)
            )
        return content


def digest_of(path: Path) -> Digest:
    """Returns the size and hash of a regular file, read in chunks.

    Raises:
        OSError: If it cannot be read.
    """
    hashed, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    return Digest(size, hashed.hexdigest())


@contextmanager
def atomic_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yields a new file that replaces `path` when the block ends without an error.

    Until then it has a random name and is opened exclusively, so a link planted beforehand is never written through.
    A link at `path` itself is replaced, not followed.

    Args:
        path: The final location.
        sync: Whether to wait until the file is on disk. Otherwise it survives the end of the process, but not a power
            cut.

    Raises:
        OSError: If it cannot be written; an existing `path` is untouched.
    """
    staged = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    try:
        with staged.open("xb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Replaces a file's content; at any moment the file has either the old or the new one.

    Raises:
        OSError: If it cannot be written; the old content is untouched.
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def remove_partials(folder: Path) -> None:
    """Removes the files that killed calls of `atomic_file` left in a folder; no process may be writing to it."""
    for path in folder.glob(f"{PARTIAL}{'[0-9a-f]' * 16}"):
        path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """Returns the path if it is free, else the first free one of NAME_2.SUFFIX, NAME_3.SUFFIX and so on."""
    number, free = 2, path
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


@contextmanager
def atomic_folder(folder: Path, is_own: Callable[[Path], bool] = lambda older: True) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` when the block ends without an error.

    An older `folder` is moved aside and removed once the new one is in place; if it is not ours, it keeps its content
    under a free name. Leftovers of killed processes are removed first, except those another process is still writing.

    Args:
        folder: The final location.
        is_own: Returns whether the older folder, at the path it was moved to, may be removed.

    Raises:
        OSError: If writing fails; an older `folder` is untouched.
    """
    recover_folder(folder)
    for left in _left_by_kills(folder, "previous"):
        _clear(left, folder, is_own)
    for left in _left_by_kills(folder, "partial"):
        with _held(left) as is_free:
            if is_free:
                shutil.rmtree(left)
    staged, previous = (_beside(folder, state, secrets.token_hex(8)) for state in ("partial", "previous"))
    staged.mkdir(parents=True)
    try:
        with _held(staged):
            yield staged
        sync_folder(staged)
        if folder.exists():
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
    if previous.exists():
        _clear(previous, folder, is_own)


def recover_folder(folder: Path) -> None:
    """Restores a folder that a killed `atomic_folder` had moved aside but not yet replaced."""
    previous = _left_by_kills(folder, "previous")
    if previous and not folder.exists():
        with suppress(OSError):  # if renaming fails, so does the write that follows, and that one reports it
            previous[0].rename(folder)


def _clear(previous: Path, folder: Path, is_own: Callable[[Path], bool]) -> None:
    if is_own(previous):  # renamed first: if a kill interrupts the removal, the rest is removed without asking again
        shutil.rmtree(previous.rename(_beside(folder, "partial", secrets.token_hex(8))))
    else:
        previous.rename(free_name(folder))


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Locks a folder and yields whether no other process has locked it; True where locks are not supported."""
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError as error:
            is_free = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield is_free
    finally:
        os.close(descriptor)


def _beside(folder: Path, state: str, number: str) -> Path:
    return folder.with_name(f".{folder.name}.{state}-{number}")


def _left_by_kills(folder: Path, state: str) -> list[Path]:
    pattern = _beside(Path(glob.escape(folder.name)), state, "[0-9a-f]" * 16).name
    return [path for path in folder.parent.glob(pattern) if path.is_dir() and not path.is_symlink()]


@contextmanager
def file_lock(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Locks out other processes and threads while the block runs, and yields whether it succeeded.

    The system releases the lock when this process ends, however it ends, even if forked processes live on. The lock
    file stays; a link in its place is not followed. On a file system without locks nobody is locked out.

    Args:
        lock: The lock file; created if missing.
        wait: Whether to wait until other processes release the lock.

    Raises:
        OSError: If the file cannot be created.
    """
    from filelock import FileLock, Timeout  # imported here because it takes 0.15 s, and few commands lock

    # By default, without flock, the library uses a file whose mere existence is the lock, even after a kill.
    held = FileLock(lock, blocking=wait, fallback_to_soft=False)
    try:
        held.acquire()
        is_ours = True
    except Timeout:
        is_ours = False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        is_ours = True
    try:
        yield is_ours
    finally:
        held.release()


def lock_file(file: BinaryIO, wait: bool = False, shared: bool = False) -> bool:
    """Locks an open file against other processes, and returns whether it succeeded.

    The lock lasts until this process ends, or closes this or any other handle of the file; forked processes do not
    inherit it. On Windows or a file system without locks nobody is locked out.

    Args:
        file: Opened for reading and writing.
        wait: Whether to wait until other processes release the lock.
        shared: Whether other shared locks may exist at the same time. A second call without `shared` makes the lock
            exclusive.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # both mean that another process has the lock
    return True


def sync_folder(folder: Path) -> None:
    """Waits until a folder's entries are on disk.

    Raises:
        OSError: If the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: OSError, folder: Path) -> str:
    """Returns an error's reason in words; for a full disk, including the number of free bytes.

    Args:
        error: Raised by the operating system.
        folder: The folder that was written to; it need not exist.
    """
    said = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return said
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{said}: {shutil.disk_usage(existing).free:,} bytes are free in {existing}"
