"""`images/`, `masks/` and a list of names per split: `train.txt`."""

from collections.abc import Iterator
from pathlib import Path

from exfuse.data.files import inside
from exfuse.data.formats.base import DatasetFormat, FoundImage, OnMissing, images_of_list


class Lists(DatasetFormat):
    """`images/`, `masks/` and `SPLIT.txt`."""

    name = "lists"
    contents = "images/, masks/ and {split}.txt"

    def detect(self, root: Path, split: str) -> bool:
        """See `DatasetFormat`."""
        return (root / "images").is_dir() and any(root.glob("*.txt"))

    def split_source(self, split: str) -> str:
        """See `DatasetFormat`."""
        return f"{split}.txt"

    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        """See `DatasetFormat`."""
        return images_of_list(root / "images", inside(root, split_source), missing)

    def masks(self, root: Path, split_source: str) -> Path:
        """See `DatasetFormat`."""
        return root / "masks"
