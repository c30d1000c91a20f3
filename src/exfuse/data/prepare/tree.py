"""The prepared folder: images/, masks/, one list per split; no validation image may be among those for training."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import numpy as np
from PIL import Image

from exfuse.data.classes import Classes
from exfuse.data.files import read_names
from exfuse.data.samples import UInt8Array
from exfuse.errors import DataError
from exfuse.outputs.folder import OutputFolder, claim_folder

Arguments = ParamSpec("Arguments")

BORDER_COLOR = (224, 224, 192)  # colour of the ignored label, as in PASCAL VOC's own masks


@dataclass(frozen=True)
class PreparedTree:
    """A folder in the format "lists".

    Attributes:
        output: The claimed folder.
    """

    output: OutputFolder

    @property
    def root(self) -> Path:
        """Path of the folder."""
        return self.output.folder

    def start(self, classes: Classes) -> None:
        """Creates the folders and writes `classes.json`."""
        rows = [
            {"id": index, "name": name, "color": list(color)}
            for index, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
        ]
        content = json.dumps({"classes": rows, "ignore_index": classes.ignore_index}, indent=1) + "\n"
        for folder in ("images", "masks"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.output.write("classes.json", content.encode())

    def add(self, name: str, image: Path, mask: UInt8Array, classes: Classes) -> None:
        """Adds a labelled image; the image file is hard-linked, or copied where links are not possible.

        Args:
            name: Its identifier, without a suffix.
            image: The image file.
            mask: Class indices, uint8 `(H, W)`.
            classes: The classes, for the mask's palette.

        Raises:
            DataError: If the name leads to another folder, or cannot be written in a list.
        """
        if name != Path(name).name or name != name.strip() or {"\n", "\r"} & set(name):
            raise DataError(f"{self.root}: {name!r} cannot be the name of an image")
        self.output.link(f"images/{name}{image.suffix.lower()}", image)
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: len(classes)] = classes.palette
        palette[classes.ignore_index] = BORDER_COLOR
        picture = Image.fromarray(mask).convert("P")
        picture.putpalette(palette.ravel().tolist())
        self.output.save(f"masks/{name}.png", picture, optimize=True)

    def drop_lists(self, *splits: str) -> None:
        """Removes lists that depend on data that is about to change."""
        for split in splits:
            self.output.remove(f"{split}.txt")

    def write_list(self, split: str, names: Iterable[str]) -> None:
        """Writes the list of a split."""
        self.output.write(f"{split}.txt", os.fsencode("".join(f"{name}\n" for name in names)))

    def read_list(self, split: str, made_by: str) -> list[str]:
        """Returns the names of a split.

        Args:
            split: Its name.
            made_by: The command that creates the list, for the error.

        Raises:
            DataError: If the list does not exist yet.
        """
        path = self.root / f"{split}.txt"
        if not path.is_file():
            raise DataError(f"{path}: does not exist yet; run {made_by} first")
        return [name for _, name in read_names(path)]

    def check_no_leak(self, train: Iterable[str], val: Iterable[str]) -> None:
        """Checks that no validation image is among those for training, by name or by the content of its file.

        Raises:
            DataError: If there are some; with up to five of their names.
        """
        train, val = list(train), list(val)
        both = sorted(set(train) & set(val))
        if both:
            raise DataError(f"{self.root}: {len(both)} val images are also training images: {', '.join(both[:5])}")
        files = {path.stem: path for path in (self.root / "images").iterdir()}

        def digest(name: str) -> bytes:
            return hashlib.sha256(files[name].read_bytes()).digest()

        known = {digest(name): name for name in val}
        copies = [(name, known[found]) for name in train if (found := digest(name)) in known]
        if copies:
            shown = ", ".join(f"{name} is {original}" for name, original in copies[:5])
            raise DataError(f"{self.root}: {len(copies)} training images are copies of val images: {shown}")


def into_folder(
    prepare: Callable[Concatenate[Path, OutputFolder, Arguments], dict[str, int]],
) -> Callable[Concatenate[Path, Path, Arguments], dict[str, int]]:
    """Decorates a function to accept the path of its output folder, and claims the folder; see `claim_folder`."""

    @wraps(prepare)
    def claimed(source: Path, output: Path, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> dict[str, int]:
        with claim_folder(output, "exfuse data prepare") as folder:
            folder.check_unchanged()
            return prepare(source, folder, *args, **kwargs)

    return claimed


def check_counts(found: Mapping[str, int], expected: Mapping[str, int], root: Path) -> None:
    """Checks the numbers of images.

    Raises:
        DataError: With the first number that differs from the published one.
    """
    for what, count in expected.items():
        if found[what] != count:
            raise DataError(
                f"{root}: {found[what]:,} images in {what}, but {count:,} were published; "
                "the download may be incomplete (--partial accepts it)"
            )
