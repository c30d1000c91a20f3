"""Result folders. A journal in each folder, `.exfuse.jsonl`, proves who wrote which file.

Its first line names the command. Each further line contains the name and SHA-256 of a file and is written before the
file appears under its name, so the journal is complete even after a kill. A file that the journal does not list, or
whose content differs, is not ours. Lines with the key `source` record what a file was made from.
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
    """A folder that one command writes to, as yielded by `claim_folder`.

    Args:
        folder: The folder.
        command: The writing command, for example "exfuse predict".
        journal: The journal, open for reading and appending.

    Attributes:
        sources: Name of a file -> what it was made from, if recorded by `note_source`.
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
            OutputError: If a file exists that this command did not write, a parent is a file or a link, or the name is
                too long for the file system.
        """
        target = self.folder / name
        # Each part is checked separately: below a folder that does not exist yet, `lstat` checks the total length only.
        if any(_is_too_long(path) for path in (target, *(self.folder / part for part in PurePosixPath(name).parts))):
            raise OutputError(
                f"{target}: too long for the file system; shorten the name of the file that it is made from, or choose "
                "an output with a shorter path"
            )
        if blocker := self._blocking_parent(name):
            raise OutputError(f"{blocker} is not a folder; choose another output")
        if os.path.lexists(target) and not self._is_own(name):
            raise OutputError(
                f"{target} was not written by {self.command}, or was changed since; move it away, or choose another "
                "output"
            )

    def check_unchanged(self) -> None:
        """Checks that the files written by earlier runs are unchanged or gone.

        Raises:
            OutputError: With the first file that was changed.
        """
        for name in sorted(self._known):
            self.check(name)

    def note_source(self, name: str, source: str) -> None:
        """Records what a file is about to be made from."""
        self.sources[name] = source
        self._append({"file": name, "source": source})

    def write(self, name: str, content: bytes, sync: bool = False) -> None:
        """Writes a file atomically; see `check`.

        Args:
            name: Relative to the folder, with slashes.
            content: The file's content.
            sync: Whether to wait until the file is on disk.

        Raises:
            OutputError: If `check` raises it, or the file cannot be written.
        """
        with self.open(name, sync) as file:
            file.write(content)

    def save(self, name: str, picture: Image.Image, **options: Any) -> None:
        """Writes a picture in the format of the name's suffix, with options for Pillow's `save`; see `write`."""
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        self.write(name, buffer.getvalue())

    @contextmanager
    def open(self, name: str, sync: bool = False) -> Iterator["HashedFile"]:
        """Yields a file to write in pieces; it appears when the block ends without an error; see `write`."""
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
        """Adds an existing file as a hard link, or as a copy where links are not possible; see `write`.

        Raises:
            OutputError: If `check` raises it, or the file cannot be written.
        """
        target = self.folder / name
        if os.path.lexists(target) and target.is_file() and target.samefile(source):
            self._written.add(name)
            return
        if not os.path.lexists(target):
            self.check(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._note(name, digest_of(source).sha256)
            with suppress(OSError):  # on another file system, or one without hard links, the file is copied below
                os.link(source.resolve(), target)  # resolved, because os.link may link a symbolic link itself
                return
        with self.open(name) as file, open_regular(source) as original:
            shutil.copyfileobj(original, file)

    def remove(self, name: str) -> None:
        """Removes a file that this command wrote; does nothing if it does not exist.

        Raises:
            OutputError: If this command did not write it.
        """
        self.check(name)
        (self.folder / name).unlink(missing_ok=True)

    def remove_older(self) -> None:
        """Removes the files that only earlier runs wrote; files that were changed since are kept."""
        for name in self._known.keys() - self._written:
            if self._is_own(name):
                (self.folder / name).unlink()

    def _blocking_parent(self, name: str) -> Path | None:
        """Returns the first parent of a file that exists but is not a folder, for example a link."""
        for parent in list(PurePosixPath(name).parents)[-2::-1]:
            path = self.folder / parent
            if os.path.lexists(path) and not stat.S_ISDIR(path.lstat().st_mode):
                return path
        return None

    def _is_own(self, name: str) -> bool:
        target = self.folder / name
        if self._blocking_parent(name) or not os.path.lexists(target) or not stat.S_ISREG(target.lstat().st_mode):
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
                if name.is_absolute() or ".." in name.parts:  # we never write such a line
                    continue
                if "source" in row:
                    self.sources[str(name)] = str(row["source"])
                else:
                    self._known.setdefault(str(name), set()).add(str(row["sha256"]))
            except (ValueError, TypeError, LookupError, RecursionError):
                continue  # the header, or a line cut off by a kill


class HashedFile:
    """Writes to a file and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Writes bytes and returns how many."""
        self._hash.update(content)
        return self._file.write(content)

    def sha256(self) -> str:
        """Returns the hash of everything written, in hexadecimal digits."""
        return self._hash.hexdigest()


@contextmanager
def claim_folder(folder: Path, command: str, shared: bool = False) -> Iterator[OutputFolder]:
    """Claims a folder for a command's results, created if missing; enter it before any work is done.

    Args:
        folder: A folder that is empty, does not exist, or was written by the same command.
        command: The writing command, for example "exfuse predict".
        shared: Whether other processes of the same command may write to the folder at the same time.

    Raises:
        OutputError: If the folder is not ours, another process is writing to it, or it cannot be written to.
    """
    check_folder(folder, command)
    is_new = not folder.exists()
    with ExitStack() as opened:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            journal = opened.enter_context(os.fdopen(os.open(folder / JOURNAL, flags, 0o666), "a+b"))
            if not lock_file(journal, shared=shared):
                raise OutputError(f"{folder}: another {command} is writing to it; wait, or choose another output")
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
            if is_alone and [path.name for path in folder.iterdir()] == [JOURNAL]:  # nothing was written
                (folder / JOURNAL).unlink()
                if is_new:
                    folder.rmdir()


def check_folder(folder: Path, command: str) -> bool:
    """Checks that a command may write to a folder, and returns whether it has done so before.

    Raises:
        OutputError: If it is not a folder, or it is not empty and was made by something else.
    """
    try:
        if not os.path.lexists(folder):
            return False
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder; choose another output")
        if not os.path.lexists(folder / JOURNAL):
            if any(folder.iterdir()):
                raise OutputError(f"{folder} is not empty and was not made by {command}; choose a new or empty folder")
            return False
        header = json.loads(read_file(folder / JOURNAL).partition(b"\n")[0] or b"{}")
        maker = header.get("command", command)
    except (ValueError, AttributeError, RecursionError) as error:
        raise OutputError(f"{folder / JOURNAL}: not a valid journal; choose another output") from error
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
    """Returns whether a folder is missing, empty, or contains exactly what its manifest lists, unchanged.

    Such a folder may be replaced as a whole.

    Args:
        folder: The folder; it need not exist.
        marker: A file that the folder must contain, to distinguish it from other folders with a manifest.
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
