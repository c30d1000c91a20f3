"""Faults on purpose: processes that are killed, file operations that fail, files that were changed.

Counted as file operations are the opening of a file for writing, each write, each flush to the disk, renaming, removing
and making folders: everything of a save that can be half done. To extend it, add a name to `COUNTED` or a wrapper to
`Operations.installed`.
"""

import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

COUNTED = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync")


class Operations:
    """Counts file operations below a folder and does something at the k-th.

    Args:
        root: Only operations on what lies in it count.
        at: The number of the operation, from 1, at which `act` is called, before the operation itself; 0 for none.
        act: What happens there: killing the process, or raising an `OSError`.
    """

    def __init__(self, root: Path, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.root = root.absolute()
        self.at = at
        self.act = act
        self.count = 0

    def tick(self, path: object) -> None:
        if not self.counts(path):
            return
        self.count += 1
        if self.count == self.at:
            self.act()

    def counts(self, path: object) -> bool:
        """Returns whether a path, or what a file descriptor is open on, lies in the root."""
        where = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else Path(path)  # type: ignore[arg-type]
        return where.absolute().is_relative_to(self.root)

    @contextmanager
    def installed(self) -> Iterator["Operations"]:
        counted = {name: self._counted(getattr(os, name)) for name in COUNTED}
        opening = mock.patch.object(pathlib.Path, "open", self._counted_open(pathlib.Path.open))
        with mock.patch.multiple(os, **counted), opening:
            yield self

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            path, folder = arguments[0], options.get("dir_fd")
            if folder is not None and isinstance(path, str | os.PathLike):  # as `shutil.rmtree` names what it removes
                path = Path(f"/proc/self/fd/{folder}").readlink() / path
            self.tick(path)
            return function(*arguments, **options)

        return call

    def _counted_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set("wax") & set(mode):
                return function(path, mode, *arguments, **options)
            self.tick(path)
            file = function(path, mode, *arguments, **options)
            return _CountedFile(file, self, path) if self.counts(path) else file

        return call


class _CountedFile:
    """A file opened for writing whose writes are counted; a kill at one leaves the half of it."""

    def __init__(self, file: Any, operations: Operations, path: Path) -> None:
        self._file, self._operations, self._path = file, operations, path

    def write(self, content: Any) -> Any:
        if self._operations.count + 1 == self._operations.at:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
        self._operations.tick(self._path)
        return self._file.write(content)

    def __enter__(self) -> "_CountedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def kill_myself() -> None:
    """Ends the process as a power cut would: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(action: Callable[[], None], kill_when: Callable[[], bool] | None = None) -> int:
    """Runs something in a forked process and returns how it ended, as `os.waitstatus_to_exitcode` says it.

    Args:
        action: What to run.
        kill_when: Asked again and again; the process is killed as soon as it says yes.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if kill_when is not None:
        while not kill_when():
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Returns a damaged copy: flipped bits, a cut, a repeated, removed or overwritten piece, or extreme numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            return bytes(data)
        place = rng.randrange(len(data))
        length = rng.choice((1, 2, 4, 16, 256))
        kind = rng.randrange(7)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place : place + length] = rng.randbytes(min(length, len(data) - place))
        elif kind == 5:
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00"))
        else:
            # Structure sits at the start of most files.
            start = rng.randrange(min(64, len(data)))
            data[start] = rng.randrange(256)
    return bytes(data)
