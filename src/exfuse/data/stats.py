"""One pass over a whole split before it is used: every file read, every label checked and counted."""

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
    """What a split holds.

    Attributes:
        pixel_counts: Labelled pixels of each class, `(K,)`.
        containing_image_pixels: Labelled pixels of the images in which each class occurs, `(K,)`.
        image_counts: Images in which each class occurs, `(K,)`.
        ignored: Pixels that are no class.
        fingerprint: Equal ones mean equal data: a SHA-256, in hexadecimal digits, over 32 bytes for what the labels
            mean and then, for each image in the split's order, 32 bytes each for its name, its file and its mask's.
            These are SHA-256 themselves: of the JSON of `names`, `palette`, `ignore_index` and `label_map` in this
            order; of the name's bytes in the file system; and of the files' contents.
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
        DataError: On the first file that is missing, broken or has a label outside the classes.
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
    """Returns the digest of what the values in the masks mean."""
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
