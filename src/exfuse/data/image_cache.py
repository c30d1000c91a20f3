"""A cache of decoded splits: the pixels are in one uint8 file, from which samples are memory-mapped."""

import os
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL

from exfuse.cache import cache_folder, kept
from exfuse.data.datasets import SegmentationDataset
from exfuse.data.parallel import map_images
from exfuse.data.samples import Sample, image_size
from exfuse.errors import DataError, brief

FORMAT = 1  # increase it with every change to the content or the layout of the cache
PIXELS, SIDES = "pixels.uint8", "sides.npy"
BYTES_A_PIXEL = 4  # three of the image, one of the mask


class MemmapDataset:
    """The samples of a `SegmentationDataset`, mapped from the cache instead of decoded.

    Args:
        dataset: The split.
        folder: Its folder in the cache, written by `build_image_cache`.
    """

    def __init__(self, dataset: SegmentationDataset, folder: Path) -> None:
        self._dataset = dataset
        self._pixels = folder / PIXELS
        self._sides: npt.NDArray[np.int64] = np.load(folder / SIDES, allow_pickle=False)
        self._starts = BYTES_A_PIXEL * np.concatenate([[0], self._sides.prod(axis=1).cumsum()])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        """Maps one sample.

        Raises:
            DataError: If the cache's file was removed or truncated since it was opened.
        """
        height, width = (int(side) for side in self._sides[index])
        try:
            # Mapped anew for each sample: nothing is shared with worker processes, and pages can be freed after use.
            both = np.memmap(
                self._pixels, np.uint8, mode="c", offset=int(self._starts[index]), shape=(BYTES_A_PIXEL, height, width)
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._pixels}: removed or truncated while in use ({brief(error)}); start again to rebuild it"
            ) from error
        image = np.asarray(both[:3]).reshape(height, width, 3)
        return Sample(image, np.asarray(both[3]))

    def image_path(self, index: int) -> Path:
        """Returns the path of the image that was decoded."""
        return self._dataset.image_path(index)


def build_image_cache(dataset: SegmentationDataset, fingerprint: str) -> MemmapDataset:
    """Returns a split from the user's cache, and decodes it first unless the cache has it, unchanged.

    Args:
        dataset: The split.
        fingerprint: Of its content; see `compute_stats`. The cache key contains it and the version of Pillow.

    Raises:
        DataError: If the cache cannot be written to or has too little space, or a file of the split cannot be read.
    """
    name = f"{fingerprint[:32]}-{FORMAT}-{PIL.__version__}"
    try:
        return MemmapDataset(dataset, kept("decoded", name, lambda staged: _write(dataset, staged)))
    except OSError as error:
        raise DataError(
            f"{cache_folder() / 'decoded' / name}: decoded images cannot be written ({error.strerror}); set "
            "data.cache=false, or EXFUSE_CACHE to another folder"
        ) from error


def _check_space(dataset: SegmentationDataset, folder: Path) -> None:
    needed = 0
    for entry in dataset.entries:
        height, width = image_size(entry.image)
        needed += BYTES_A_PIXEL * height * width
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the decoded images of {dataset.root} need {needed:,} bytes, but {free:,} are free; set "
            "data.cache=false, or EXFUSE_CACHE to another folder"
        )


def _write(dataset: SegmentationDataset, folder: Path) -> None:
    _check_space(dataset, folder)
    sides = np.empty((len(dataset), 2), dtype=np.int64)
    with (folder / PIXELS).open("wb") as file:
        for index, sample in enumerate(map_images(dataset.__getitem__, range(len(dataset)), dataset.files_of)):
            sides[index] = sample.mask.shape
            file.write(sample.image.tobytes())
            file.write(sample.mask.tobytes())
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / SIDES, sides)
