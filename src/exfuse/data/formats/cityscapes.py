"""Cityscapes' folders (Cordts et al., CVPR 2016)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from exfuse.data.classes import CITYSCAPES, CITYSCAPES_IDS, Classes
from exfuse.data.files import inside
from exfuse.data.formats.base import DatasetFormat, FoundImage, OnMissing, images_of_folder
from exfuse.data.samples import UInt8Array

IMAGE = "_leftImg8bit"  # at the end of an image's name
MASK = "_gtFine_labelIds"


class Cityscapes(DatasetFormat):
    """`leftImg8bit/SPLIT/` and `gtFine/SPLIT/`, whose masks store 34 ids; 19 of them are classes."""

    name = "cityscapes"
    contents = "Cityscapes' leftImg8bit/{split}/ and gtFine/{split}/"

    def detect(self, root: Path, split: str) -> bool:
        """See `DatasetFormat`."""
        return (root / "leftImg8bit").is_dir()

    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        """See `DatasetFormat`."""
        for image in images_of_folder(inside(root / "leftImg8bit", split_source), missing):
            if image.path.name.endswith(f"{IMAGE}.png"):
                name = image.name.removesuffix(IMAGE)
                yield FoundImage(name, image.path, f"{name}{MASK}")

    def masks(self, root: Path, split_source: str) -> Path:
        """See `DatasetFormat`."""
        return inside(root / "gtFine", split_source)

    def classes(self, root: Path) -> Classes:
        """See `DatasetFormat`."""
        return CITYSCAPES

    def label_map(self) -> UInt8Array:
        """See `DatasetFormat`."""
        label_map = np.full(256, CITYSCAPES.ignore_index, dtype=np.uint8)
        label_map[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
        return label_map
