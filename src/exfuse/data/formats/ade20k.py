"""ADE20K's folders (Zhou et al., CVPR 2017), as in the scene parsing challenge."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from exfuse.data.classes import Classes, voc_palette
from exfuse.data.classes_file import checked_classes
from exfuse.data.files import inside, read_text
from exfuse.data.formats.base import DatasetFormat, FoundImage, OnMissing, images_of_folder
from exfuse.data.samples import UInt8Array
from exfuse.errors import DataError, without_path


class Ade20k(DatasetFormat):
    """`images/SPLIT/` and `annotations/SPLIT/`, whose masks store 0 for unlabelled pixels and the classes from 1."""

    name = "ade20k"
    contents = "ADE20K's images/ and annotations/{split}/"

    def detect(self, root: Path, split: str) -> bool:
        """See `DatasetFormat`."""
        return (root / "annotations" / split).is_dir()

    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        """See `DatasetFormat`."""
        return images_of_folder(inside(root / "images", split_source), missing)

    def masks(self, root: Path, split_source: str) -> Path:
        """See `DatasetFormat`."""
        return inside(root / "annotations", split_source)

    def classes(self, root: Path) -> Classes:
        """See `DatasetFormat`."""
        return read_ade20k_classes(root / "objectInfo150.txt")

    def label_map(self) -> UInt8Array:
        """See `DatasetFormat`."""
        label_map = np.full(256, 255, dtype=np.uint8)
        label_map[1:151] = np.arange(150)
        return label_map


def read_ade20k_classes(path: Path) -> Classes:
    """Reads the names of the 150 classes from the table that comes with ADE20K.

    Raises:
        DataError: If it cannot be read or does not have 150 rows.
    """
    try:
        rows = [line.split("\t") for line in read_text(path).splitlines()[1:] if line.strip()]
        names = tuple(row[4].strip() for row in rows)
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{path}: not ADE20K's table of classes ({without_path(error)})") from error
    if len(names) != 150:
        raise DataError(f"{path}: {len(names)} classes instead of 150")
    return checked_classes(path, names, voc_palette(150))
