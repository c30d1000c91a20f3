"""The images that a command's arguments mean."""

import glob
from collections.abc import Callable, Mapping
from pathlib import Path

from exfuse.data.files import image_files
from exfuse.data.samples import IMAGE_SUFFIXES
from exfuse.errors import DataError
from exfuse.outputs.place import lies_in

# A folder with one of these beside `images` is a data set, whose masks are not to be segmented.
MASK_FOLDERS = ("masks", "annotations")


def find_images(
    paths: list[str],
    output: Path | None = None,
    taken: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Returns the images that the arguments mean, by the name their results get.

    A file's name is its own without the suffix; an image in a folder keeps its place below that folder. Where two
    would have the same name, the later one gets a number. Of a data set, a folder with `images` and masks in it, only
    `images` is taken. What lies in the output folder is left out. Both is said.

    Args:
        paths: Files, folders and globs.
        output: The folder that will be written to, if any.
        taken: Names that results have already, with the absolute path of each one's image.
        say: Called with what is left out.

    Raises:
        DataError: If one of the paths matches nothing, or is a file in the output folder.
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
            say(f"{text}: {len(found) - len(kept)} images in {output} are left out")
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
            say(f"{path}: a data set; its images in {path / 'images'} are taken")
            root = path / "images"
        return [(_without_suffix(file.relative_to(root).as_posix()), file) for file in image_files(root)]
    matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
    return [
        (_without_suffix(path.name), path)
        for path in matches
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]


def _without_suffix(name: str) -> str:
    """Returns a name without its last suffix; of one that begins with dots, such as "...jpg", something is left."""
    start = name.rpartition("/")[2]
    return name[: -len(Path(start).suffix)] if Path(start).suffix else name
