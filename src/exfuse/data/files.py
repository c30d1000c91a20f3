"""Reading text written by any editor, checking names from lists, and finding images in folders with links."""

import codecs
import io
import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from exfuse.atomic_io import read_file
from exfuse.data.samples import IMAGE_SUFFIXES
from exfuse.errors import DataError, shown, without_path

MAX_DESCRIPTION = 2**20  # bytes in a text file that describes a data set
MAX_LIST = 64 * 2**20  # bytes in a list of images: about two million names
MAX_NAME = 1000  # characters in a name in a list or a description
MAX_PART = 255  # bytes in one component of a path, the usual limit of file systems
MAX_FILES = 5_000_000  # files and folders below a folder, with all links followed


def read_text(path: Path, limit: int = MAX_DESCRIPTION, errors: str = "strict") -> str:
    """Reads text in UTF-8, with or without a byte order mark, or in UTF-16 with one, as Windows tools write it.

    Args:
        path: The file.
        limit: Maximum size in bytes.
        errors: How to handle bytes that are not UTF-8; see `bytes.decode`.

    Raises:
        OSError: If it cannot be read, is not a regular file or is larger than the limit.
        UnicodeDecodeError: If it is in another encoding.
    """
    content = read_file(path, limit)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig", errors)


def read_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number (from 1) and the name, stripped of white space, of each line of a list that is not blank.

    Bytes that are not UTF-8 are decoded as in file names, so that the name still finds its file.

    Raises:
        DataError: If the file is missing, not text or too large, or a name is longer than `MAX_NAME`.
    """
    try:
        text = read_text(path, MAX_LIST, "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of images ({without_path(error)})") from error
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        name = line.strip()
        if len(name) > MAX_NAME:
            raise DataError(
                f"{path}: line {number}: {len(name):,} characters, but a name has at most {MAX_NAME:,}; write one name "
                "per line"
            )
        if name:
            yield number, name


def inside(root: Path, name: str) -> Path:
    """Returns the path in `root` of a file or folder that a list or a description names.

    Only the text of the name is checked: it cannot name anything outside `root`. Links are followed wherever they lead,
    because anyone who can create a link in `root` could also put the file itself there.

    Raises:
        DataError: If the name leads out of `root`, on this operating system or another, or is not a valid name.
    """
    parsed = PureWindowsPath(name)  # it splits at both kinds of slash and recognises drives
    try:
        longest = max((len(os.fsencode(part)) for part in parsed.parts), default=0)
    except UnicodeEncodeError:
        longest = MAX_PART + 1
    if not name or "\0" in name or len(name) > MAX_NAME or longest > MAX_PART:
        raise DataError(f"{shown(name)} is not a valid name of a file in {root}")
    if parsed.anchor or ".." in parsed.parts:
        raise DataError(f"{shown(name)} leads out of the folder {root}")
    return root / name


def image_files(folder: Path) -> list[Path]:
    """Returns the image files below a folder, at any depth, sorted by path.

    Links to files and folders are followed, except a link to a folder that contains it. A broken link is returned
    whatever its suffix, so that the attempt to read it reports it.

    Args:
        folder: The folder to search.

    Raises:
        DataError: If a folder cannot be read, or more than `MAX_FILES` files and folders are found.
    """
    found: list[Path] = []
    looked_at = 0
    # Each folder with its resolved path, and the resolved paths of the folders whose links were followed to reach it.
    waiting: list[tuple[Path, Path, tuple[Path, ...]]] = [(folder, folder.resolve(), ())]
    while waiting:
        place, real, left = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    looked_at += 1
                    if looked_at > MAX_FILES:
                        raise DataError(f"{folder}: more than {MAX_FILES:,} files and folders, with all links followed")
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
            raise DataError(f"{error.filename or place}: cannot be listed ({without_path(error)})") from error
    return sorted(found)
