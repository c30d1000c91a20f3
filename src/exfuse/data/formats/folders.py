"""A folder of images and a folder of masks per split: `images/train/`, `masks/train/`."""

from collections.abc import Iterator
from pathlib import Path

from exfuse.data.files import inside
from exfuse.data.formats.base import DatasetFormat, FoundImage, OnMissing, images_of_folder


class Folders(DatasetFormat):
    """`images/SPLIT/` and `masks/SPLIT/`."""

    name = "folders"
    contents = "images/{split}/ and masks/{split}/"

    def detect(self, root: Path, split: str) -> bool:
        """See `DatasetFormat`."""
        return (root / "images" / split).is_dir()

    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        """See `DatasetFormat`."""
        return images_of_folder(inside(root / "images", split_source), missing)

    def masks(self, root: Path, split_source: str) -> Path:
        """See `DatasetFormat`."""
        return inside(root / "masks", split_source)
