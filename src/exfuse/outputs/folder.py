"""Folders of results. The proof of who wrote what is a journal in the folder, `.exfuse.jsonl`.

Its first line names the command; each further line holds the name and the SHA-256 of a file, and is written before the
file gets its name, so that it speaks for every file even after a kill. A file that the journal doesn't list, or whose
content is another, is somebody else's. Other lines say what a file was made from.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import Image

from exfuse.atomic_io import atomic_file, digest_of, lock_file, open_regular, read_file, remove_partials
from exfuse.errors import CheckpointError, OutputError
from exfuse.manifest import MANIFEST, verify_folder
from exfuse.outputs.place import unwritable

JOURNAL = ".exfuse.jsonl"


class OutputFolder:
    """A folder that one command writes into, as `claim_folder` yields it.

    Args:
        folder: The folder.
        command: Who writes, for example "exfuse predict".
        journal: Open for reading and appending.

    Attributes:
        sources: Name of a file -> what it was made from, where `note_source` was told.
    """

    def __init__(self, folder: Path, command: str, journal: BinaryIO) -> None:
        self.folder = folder
        self.command = command
        self.sources: dict[str, str] = {}
        self._journal = journal
        self._known: dict[str, set[str]] = {}
        self._written: set[str] = set()
        self._read_journal()

    def check(self, name: str) -> None:
        """Checks that a file may be written.

        Args:
            name: Relative to the folder, with slashes.

        Raises:
            OutputError: If something is there that this command didn't write, a link is on the way to it, or the file
                system has no names as long.
        """
        target = self.folder / name
        # Each part by itself: of one in a folder that is not there yet, only the length of the whole is looked at.
        if any(_is_too_long(path) for path in (target, *(self.folder / part for part in PurePosixPath(name).parts))):
            raise OutputError(
                f"{target}: longer than the file system allows; give the file that it is made from a shorter name, or "
                "choose an output with a shorter path"
            )
        if strange := self._no_folder_above(name):
            raise OutputError(f"{strange} is not a folder; choose another output")
        if os.path.lexists(target) and not self._is_own(name):
            raise OutputError(
                f"{target} was not written by {self.command}, or was changed since; move it away, or choose another "
                "output"
            )

    def check_unchanged(self) -> None:
        """Checks that what earlier calls wrote is as they wrote it, or gone.

        Raises:
            OutputError: With the first file that was changed since.
        """
        for name in sorted(self._known):
            self.check(name)

    def note_source(self, name: str, source: str) -> None:
        """Notes what a file is about to be made from."""
        self.sources[name] = source
        self._append({"file": name, "source": source})

    def write(self, name: str, content: bytes, sync: bool = False) -> None:
        """Writes a file, whole or not at all; see `check`.

        Args:
            name: Relative to the folder, with slashes.
            content: Of the file.
            sync: Wait until it is on the disk.

        Raises:
            OutputError: If `check` does, or it cannot be written.
        """
        with self.open(name, sync) as file:
            file.write(content)

    def save(self, name: str, picture: Image.Image, **options: Any) -> None:
        """Writes a picture in the format of the name's suffix, with the options of Pillow's `save`; see `write`."""
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        self.write(name, buffer.getvalue())

    @contextmanager
    def open(self, name: str, sync: bool = False) -> Iterator["HashedFile"]:
        """Yields a file to write in pieces, which is there once the block has ended without an error; see `write`."""
        self.check(name)
        target = self.folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target, sync) as file:
                hashed = HashedFile(file)
                yield hashed
                self._note(name, hashed.sha256())
        except OSError as error:
            raise unwritable(target, error) from error

    def link(self, name: str, source: Path) -> None:
        """Puts another file at a place, without taking space where the file system can; see `write`.

        Raises:
            OutputError: If `check` does, or it cannot be written.
        """
        target = self.folder / name
        if os.path.lexists(target) and target.is_file() and target.samefile(source):
            self._written.add(name)
            return
        if not os.path.lexists(target):
            self.check(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._note(name, digest_of(source).sha256)
            with suppress(OSError):  # on another file system, or on one without links, it is copied
                os.link(source.resolve(), target)  # else, of a link, the link
                return
        with self.open(name) as file, open_regular(source) as original:
            shutil.copyfileobj(original, file)

    def remove(self, name: str) -> None:
        """Removes a file if it is there and this command wrote it.

        Raises:
            OutputError: If it is there and somebody else's.
        """
        self.check(name)
        (self.folder / name).unlink(missing_ok=True)

    def remove_older(self) -> None:
        """Removes what earlier calls wrote and this one didn't; a file that was changed since stays."""
        for name in self._known.keys() - self._written:
            if self._is_own(name):
                (self.folder / name).unlink()

    def _no_folder_above(self, name: str) -> Path | None:
        """Returns what is in the place of a folder above a file, a link for example."""
        for parent in list(PurePosixPath(name).parents)[-2::-1]:
            path = self.folder / parent
            if os.path.lexists(path) and not stat.S_ISDIR(path.lstat().st_mode):
                return path
        return None

    def _is_own(self, name: str) -> bool:
        target = self.folder / name
        if self._no_folder_above(name) or not os.path.lexists(target) or not stat.S_ISREG(target.lstat().st_mode):
            return False
        found = digest_of(target).sha256
        if found not in self._known.get(name, ()):
            self._read_journal()  # another process may share the folder
        return found in self._known.get(name, ())

    def _note(self, name: str, sha256: str) -> None:
        self._known.setdefault(name, set()).add(sha256)
        self._written.add(name)
        self._append({"file": name, "sha256": sha256})

    def _append(self, row: dict[str, str]) -> None:
        self._journal.write(json.dumps(row).encode() + b"\n")
        self._journal.flush()

    def _read_journal(self) -> None:
        self._journal.seek(0)
        for line in self._journal.read().split(b"\n"):
            try:
                row = json.loads(line)
                name = PurePosixPath(row["file"])
                if name.is_absolute() or ".." in name.parts:  # which none of ours is
                    continue
                if "source" in row:
                    self.sources[str(name)] = str(row["source"])
                else:
                    self._known.setdefault(str(name), set()).add(str(row["sha256"]))
            except (ValueError, TypeError, LookupError, RecursionError):
                continue  # the header, or a line that a kill cut off


class HashedFile:
    """Passes on what is written to a file, and hashes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Writes bytes and returns how many."""
        self._hash.update(content)
        return self._file.write(content)

    def sha256(self) -> str:
        """Returns the hash of all that was written, in hexadecimal digits."""
        return self._hash.hexdigest()


@contextmanager
def claim_folder(folder: Path, command: str, shared: bool = False) -> Iterator[OutputFolder]:
    """Takes a folder for what a command writes, made if it is not there; tried before any work is done.

    Args:
        folder: One that is empty, does not exist, or that the same command has written before.
        command: Who writes, for example "exfuse predict".
        shared: Let other processes of the same command write into it at the same time.

    Raises:
        OutputError: If it is somebody else's, another process is writing there, or it cannot be written to.
    """
    check_folder(folder, command)
    is_new = not folder.exists()
    with ExitStack() as opened:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            journal = opened.enter_context(os.fdopen(os.open(folder / JOURNAL, flags, 0o666), "a+b"))
            if not lock_file(journal, shared=shared):
                raise OutputError(f"another {command} is writing into {folder}; wait for it, or choose another output")
            journal.seek(0)
            content = journal.read()
            if not content:
                journal.write(json.dumps({"command": command}).encode() + b"\n")
            elif not content.endswith(b"\n"):  # a kill cut off the last line
                journal.write(b"\n")
            journal.flush()
            if not shared:
                for part in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                    remove_partials(part)
        except OSError as error:
            raise unwritable(folder, error) from error
        try:
            yield OutputFolder(folder, command, journal)
        finally:
            is_alone = not shared or lock_file(journal)
            if is_alone and [path.name for path in folder.iterdir()] == [JOURNAL]:  # nothing came of it
                (folder / JOURNAL).unlink()
                if is_new:
                    folder.rmdir()


def check_folder(folder: Path, command: str) -> bool:
    """Checks that a command may write into a folder, and returns whether it has done so before.

    Raises:
        OutputError: If it is a file, or there is something in it and the command didn't make it.
    """
    try:
        if not os.path.lexists(folder):
            return False
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder; choose another output")
        if not os.path.lexists(folder / JOURNAL):
            if any(folder.iterdir()):
                raise OutputError(
                    f"{folder} is not empty and was not made by {command}; choose an empty folder, or one that does "
                    "not exist"
                )
            return False
        header = json.loads(read_file(folder / JOURNAL).partition(b"\n")[0] or b"{}")
        maker = header.get("command", command)
    except (ValueError, AttributeError, RecursionError) as error:
        raise OutputError(f"{folder / JOURNAL}: not readable; choose another output") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    if maker != command:
        raise OutputError(f"{folder} was made by {maker}, not by {command}; choose another output")
    return True


def _is_too_long(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def is_replaceable(folder: Path, marker: str) -> bool:
    """Returns whether a folder may be replaced whole: it is empty, or holds just what its manifest lists, unchanged.

    Args:
        folder: A folder, or nothing.
        marker: A file that is in such a folder, by which it is told from others that have a manifest.
    """
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir()}
    try:
        return not found or (marker in found and found == {*verify_folder(folder, editable=True), MANIFEST})
    except CheckpointError:
        return False
