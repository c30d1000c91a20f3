"""A pass over a whole split before it is used, which reads every file and checks and counts every label."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from exfuse.atomic_io import digest_of
from exfuse.data.datasets import SegmentationDataset
from exfuse.data.parallel import map_images
from exfuse.data.samples import count_labels
from exfuse.errors import DataError, without_path

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of a split.

    Attributes:
        pixel_counts: Number of labelled pixels of each class, `(K,)`.
        containing_image_pixels: Number of labelled pixels in the images that contain each class, `(K,)`.
        image_counts: Number of images that contain each class, `(K,)`.
        ignored: Number of ignored pixels.
        fingerprint: Equal for equal data. A SHA-256, in hexadecimal digits, of these concatenated SHA-256 digests: of
            the JSON of `names`, `palette`, `ignore_index` and `label_map` in this order; and, for each image in the
            split's order, of the bytes of its name in the file system, of its file and of its mask's file.
    """

    pixel_counts: Int64Array
    containing_image_pixels: Int64Array
    image_counts: Int64Array
    ignored: int
    fingerprint: str


def compute_stats(dataset: SegmentationDataset, progress: Callable[[], None] = lambda: None) -> DatasetStats:
    """Reads every image and mask of a split once.

    Args:
        dataset: The split.
        progress: Called after each image.

    Raises:
        DataError: For the first file that is missing, broken or contains an unknown label.
    """
    num_classes = len(dataset.classes)
    pixels, containing_image_pixels, images = (np.zeros(num_classes, dtype=np.int64) for _ in range(3))
    ignored = 0
    digest = hashlib.sha256(_meaning(dataset))
    for counts, image_digest in map_images(partial(_read_one, dataset), range(len(dataset)), dataset.files_of):
        labelled = counts[:num_classes]
        present = labelled > 0
        pixels += labelled
        containing_image_pixels += present * labelled.sum()
        images += present
        ignored += int(counts[num_classes:].sum())
        digest.update(image_digest)
        progress()
    return DatasetStats(pixels, containing_image_pixels, images, ignored, digest.hexdigest())


def _meaning(dataset: SegmentationDataset) -> bytes:
    """Returns a digest of the meaning of the masks' values."""
    classes, label_map = dataset.classes, dataset.label_map
    meaning = {
        "names": classes.names,
        "palette": classes.palette,
        "ignore_index": classes.ignore_index,
        "label_map": None if label_map is None else label_map.tolist(),
    }
    return hashlib.sha256(json.dumps(meaning).encode()).digest()


def _read_one(dataset: SegmentationDataset, index: int) -> tuple[Int64Array, bytes]:
    sample = dataset[index]
    entry = dataset.entries[index]
    digests = hashlib.sha256(os.fsencode(entry.name)).digest()
    for path in (entry.image, entry.mask):
        try:
            digests += bytes.fromhex(digest_of(path).sha256)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({without_path(error)})") from error
    return count_labels(sample.mask), digests
