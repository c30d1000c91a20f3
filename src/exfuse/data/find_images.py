"""Finding the images that a command's arguments name."""

import glob
from collections.abc import Callable, Mapping
from pathlib import Path

from exfuse.data.files import image_files
from exfuse.data.samples import IMAGE_SUFFIXES
from exfuse.errors import DataError
from exfuse.outputs.place import lies_in

# A folder with `images` and one of these is a data set; its masks must not be segmented.
MASK_FOLDERS = ("masks", "annotations", "labels")


def find_images(
    paths: list[str],
    output: Path | None = None,
    taken: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Returns the images that the arguments name, by the names of their results.

    The result of a file is named after the file, without its suffix; the result of an image below a folder keeps the
    image's relative path. If two names are equal, a number is appended to the later one. Of a data set, which is a
    folder with `images` and masks, only `images` is used. Images in the output folder are skipped.

    Args:
        paths: Files, folders and globs.
        output: The folder to be written to, if any.
        taken: Names of existing results -> absolute path of their images.
        say: Called with a message about each data set and about skipped images.

    Raises:
        DataError: If a path matches no image, or only images in the output folder.
    """
    images: dict[str, Path] = {}
    taken = taken or {}
    for text in paths:
        found = _expand(text, say)
        if not found:
            raise DataError(f"{text}: no image found")
        kept = [(name, path) for name, path in found if output is None or not lies_in(path, output)]
        if not kept:
            raise DataError(f"{text}: lies in the output folder {output}")
        if len(kept) < len(found):
            say(f"{text}: {len(found) - len(kept)} images in the output folder {output} are skipped")
        for name, path in kept:
            unique, number = name, 2
            while unique in images or taken.get(unique, path.absolute()) != path.absolute():
                unique, number = f"{name}_{number}", number + 1
            images[unique] = path
    return images


def _expand(text: str, say: Callable[[str], None]) -> list[tuple[str, Path]]:
    path = Path(text)
    if path.is_file():
        return [(_without_suffix(path.name), path)]
    if path.is_dir():
        root = path
        if (path / "images").is_dir() and any((path / name).is_dir() for name in MASK_FOLDERS):
            say(f"{path}: a data set; only its images in {path / 'images'} are used")
            root = path / "images"
        return [(_without_suffix(file.relative_to(root).as_posix()), file) for file in image_files(root)]
    matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
    return [
        (_without_suffix(path.name), path)
        for path in matches
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]


def _without_suffix(name: str) -> str:
    """Returns a name without its last suffix, but never an empty one, even for "...jpg"."""
    start = name.rpartition("/")[2]
    return name[: -len(Path(start).suffix)] if Path(start).suffix else name
