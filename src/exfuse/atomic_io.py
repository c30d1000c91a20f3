"""Files and folders that are there whole or not at all, also after a crash or a full disk; one writer at a time."""

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

CHUNK = 4 * 2**20  # bytes written at a time
PARTIAL = ".exfuse-partial-"  # begins the name of a file that is being written; a random number follows
MAX_TEXT = 64 * 2**20  # bytes of a file that is read whole: a description, a list, a recipe
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # the file system knows none, or its server has none


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


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading; a pipe or a device, which could be waited for or read without end, is refused.

    Raises:
        OSError: If it cannot be opened or is not a regular file.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a pipe that nobody is at the other end of, where a plain open would wait for somebody."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def read_file(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        OSError: If it cannot be read, is not a regular file or is larger than the limit.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            raise OSError(
                errno.EFBIG, f"{os.fstat(file.fileno()).st_size:,} bytes, and {limit:,} are allowed", str(path)
            )
        return content


def digest_of(path: Path) -> Digest:
    """Returns the size and the hash of a regular file, read in pieces.

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
    """Yields a new file that takes the place of `path` once the block has ended without an error.

    Until then it has a name that nobody can guess and is opened exclusively, so that a link planted beforehand is
    never written through. A link at `path` itself is replaced, not followed.

    Args:
        path: Its final place.
        sync: Whether to wait until it is on the disk. Without, it survives the end of the process but not a power cut.

    Raises:
        OSError: If it cannot be written; what was at `path` is untouched.
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
    """Gives a file new content; at any moment it holds the old or the new one.

    Raises:
        OSError: If it cannot be written; the old content is untouched.
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def remove_partials(folder: Path) -> None:
    """Removes what `atomic_file` left in a folder when its process was killed; nobody may be writing there."""
    for path in folder.glob(f"{PARTIAL}{'[0-9a-f]' * 16}"):
        path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """Returns the path, or the first of NAME_2.SUFFIX, NAME_3.SUFFIX and so on where nothing is."""
    number, free = 2, path
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


@contextmanager
def atomic_folder(folder: Path, is_own: Callable[[Path], bool] = lambda older: True) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` once the block has ended without an error.

    An older `folder` is moved aside, and removed when the new one is in its place; one that is not ours gets a free
    name instead. What was left where this was cut off by a kill is cleared first, but not what another process is still
    writing.

    Args:
        folder: Where to.
        is_own: Called with the older folder, where it was moved to.

    Raises:
        OSError: If something cannot be written; an older `folder` is untouched.
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
    """Gives a folder its name again if `atomic_folder` was cut off between taking it and giving it to the new one."""
    previous = _left_by_kills(folder, "previous")
    if previous and not folder.exists():
        with suppress(OSError):  # what cannot be renamed cannot be written to either, which says so
            previous[0].rename(folder)


def _clear(previous: Path, folder: Path, is_own: Callable[[Path], bool]) -> None:
    if is_own(previous):  # renamed first, as what a kill leaves of it is not to be asked about again
        shutil.rmtree(previous.rename(_beside(folder, "partial", secrets.token_hex(8))))
    else:
        previous.rename(free_name(folder))


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Holds a folder for this process and yields whether no other one does, as far as the file system knows."""
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
    """Keeps other processes and threads from the same block while it runs, and yields whether it could.

    The system releases the lock when this process ends, however it ends, even if processes forked meanwhile live on.
    The file itself stays, and a link in its place is not followed. Where the file system knows no locks, nobody is
    kept out.

    Args:
        lock: A file that is made if it is not there.
        wait: Wait until the others are done.

    Raises:
        OSError: If the file cannot be made.
    """
    from filelock import FileLock, Timeout  # 0.15 s, and few commands lock

    # Without flock, the library would otherwise make do with a file whose mere existence locks, also after a kill.
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
    """Locks an open file against other processes and returns whether it could.

    The lock lasts until this process closes the file, or any other opening of it, or ends; forked processes do not
    hold it. Nobody is kept out on Windows, or where the file system knows no locks.

    Args:
        file: Opened for reading and writing.
        wait: Wait until the others are done.
        shared: Let others have it at the same time who ask for no more than this. A second call without changes that.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # which say that another process has it
    return True


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


def describe_os_error(error: OSError, folder: Path) -> str:
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
