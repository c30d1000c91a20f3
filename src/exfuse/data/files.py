"""Files as people keep them: text of any editor, names that lead nowhere else, folders full of links."""

import codecs
import io
import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from exfuse.atomic_io import read_file
from exfuse.data.samples import IMAGE_SUFFIXES
from exfuse.errors import DataError, shown, without_path

MAX_DESCRIPTION = 2**20  # bytes of a text that describes a data set
MAX_LIST = 64 * 2**20  # bytes of a list of images: two million names
MAX_NAME = 1000  # characters of a name in a list or a description
MAX_PART = 255  # bytes between two slashes, as file systems have it
MAX_FILES = 5_000_000  # that a folder may hold, through all its links


def read_text(path: Path, limit: int = MAX_DESCRIPTION, errors: str = "strict") -> str:
    """Reads text in UTF-8, with or without a byte order mark, or in UTF-16 with one, as Windows' tools write it.

    Args:
        path: The file.
        limit: Bytes that it may have.
        errors: How to decode what is not UTF-8; see `bytes.decode`.

    Raises:
        OSError: If it cannot be read, is not a regular file or is larger than the limit.
        UnicodeDecodeError: If it is in another encoding.
    """
    content = read_file(path, limit)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig", errors)


def read_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a list of images that are not blank, without spaces around them, and their numbers from 1.

    A name that is not UTF-8 is read as the system's functions for files spell it, and so finds its file.

    Raises:
        DataError: If the file is missing, no text or too large, or a line is longer than `MAX_NAME`.
    """
    try:
        text = read_text(path, MAX_LIST, "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of images ({without_path(error)})") from error
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        name = line.strip()
        if len(name) > MAX_NAME:
            raise DataError(
                f"{path}: line {number}: {len(name):,} characters, and a name may have {MAX_NAME:,}; expected one name "
                "a line"
            )
        if name:
            yield number, name


def inside(root: Path, name: str) -> Path:
    """Returns the path of a file or folder that a list or a description names.

    The name's text is what is checked: by it nothing outside of `root` can be named. Links are followed wherever they
    lead, since whoever can put one there can put the file itself there.

    Raises:
        DataError: If the name leads out of `root`, on this system or another, or cannot be a name.
    """
    parsed = PureWindowsPath(name)  # which splits at both slashes and knows drives
    try:
        longest = max((len(os.fsencode(part)) for part in parsed.parts), default=0)
    except UnicodeEncodeError:
        longest = MAX_PART + 1
    if not name or "\0" in name or len(name) > MAX_NAME or longest > MAX_PART:
        raise DataError(f"{shown(name)} cannot be the name of a file in {root}")
    if parsed.anchor or ".." in parsed.parts:
        raise DataError(f"{shown(name)} leads out of the folder {root}")
    return root / name


def image_files(folder: Path) -> list[Path]:
    """Returns the image files below a folder to any depth, in the order of their paths.

    Links to files and to folders are followed; one that leads back to a folder that it lies in is not entered. A broken
    link is returned whatever its suffix, since nobody knows what it led to: reading it names it.

    Args:
        folder: Where to look.

    Raises:
        DataError: If a folder cannot be read, or more than `MAX_FILES` files and folders are found.
    """
    found: list[Path] = []
    looked_at = 0
    # Each with its path without links, and those of the folders that were left by a link on the way there.
    waiting: list[tuple[Path, Path, tuple[Path, ...]]] = [(folder, folder.resolve(), ())]
    while waiting:
        place, real, left = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    looked_at += 1
                    if looked_at > MAX_FILES:
                        raise DataError(f"{folder}: more than {MAX_FILES:,} files and folders, through all its links")
                    path = place / entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((path, real / entry.name, left))
                    elif entry.is_symlink() and path.is_dir():
                        target, way = path.resolve(), (*left, real)
                        if not any(one.is_relative_to(target) for one in way):
                            waiting.append((path, target, way))
                    elif path.suffix.lower() in IMAGE_SUFFIXES or (entry.is_symlink() and not path.exists()):
                        found.append(path)
        except OSError as error:
            raise DataError(f"{error.filename or place}: cannot be looked through ({without_path(error)})") from error
    return sorted(found)
