"""PASCAL VOC's folders (Everingham et al., IJCV 2010)."""

from collections.abc import Iterator
from pathlib import Path

from exfuse.data.classes import Classes, voc_classes
from exfuse.data.files import inside
from exfuse.data.formats.base import DatasetFormat, FoundImage, OnMissing, images_of_list


class Voc(DatasetFormat):
    """`JPEGImages/`, `SegmentationClass/` and lists in `ImageSets/Segmentation/`."""

    name = "voc"
    contents = "PASCAL VOC's JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{split}.txt"

    def detect(self, root: Path, split: str) -> bool:
        """See `DatasetFormat`."""
        return (root / "JPEGImages").is_dir()

    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        """See `DatasetFormat`."""
        lists = root / "ImageSets" / "Segmentation"
        return images_of_list(root / "JPEGImages", inside(lists, f"{split_source}.txt"), missing)

    def masks(self, root: Path, split_source: str) -> Path:
        """See `DatasetFormat`."""
        return root / "SegmentationClass"

    def classes(self, root: Path) -> Classes:
        """See `DatasetFormat`."""
        return voc_classes()
