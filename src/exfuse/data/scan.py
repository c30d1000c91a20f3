"""One pass over a whole split before it is used: every file read, every label checked and counted."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from exfuse.data.datasets import SegmentationDataset
from exfuse.data.parallel import map_images
from exfuse.data.samples import count_labels

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DatasetScan:
    """What a split holds.

    Attributes:
        pixels: Labelled pixels of each class, `(K,)`.
        pixels_of_images: Labelled pixels of the images in which each class occurs, `(K,)`.
        images: Images in which each class occurs, `(K,)`.
        ignored: Pixels that are no class.
        fingerprint: SHA-256 over names, file contents and the label map: equal ones mean equal data.
    """

    pixels: Int64Array
    pixels_of_images: Int64Array
    images: Int64Array
    ignored: int
    fingerprint: str


def scan_dataset(dataset: SegmentationDataset, progress: Callable[[], None] = lambda: None) -> DatasetScan:
    """Reads every image and mask of a split once.

    Args:
        dataset: The split.
        progress: Called after each image.

    Raises:
        DataError: On the first file that is missing, broken or has a label outside the classes.
    """
    num_classes = len(dataset.classes)
    pixels, pixels_of_images, images = (np.zeros(num_classes, dtype=np.int64) for _ in range(3))
    ignored = 0
    digest = hashlib.sha256(b"" if dataset.label_map is None else dataset.label_map.tobytes())
    for counts, image_digest in map_images(partial(_scan_one, dataset), range(len(dataset)), dataset.files_of):
        labelled = counts[:num_classes]
        present = labelled > 0
        pixels += labelled
        pixels_of_images += present * labelled.sum()
        images += present
        ignored += int(counts[num_classes:].sum())
        digest.update(image_digest)
        progress()
    return DatasetScan(pixels, pixels_of_images, images, ignored, digest.hexdigest())


def _scan_one(dataset: SegmentationDataset, index: int) -> tuple[Int64Array, bytes]:
    sample = dataset[index]
    entry = dataset.entries[index]
    digest = hashlib.sha256(entry.name.encode())
    for path in (entry.image, entry.mask):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return count_labels(sample.mask), digest.digest()
