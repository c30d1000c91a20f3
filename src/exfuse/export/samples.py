"""The images on which an export is compared with its network."""

from pathlib import Path

import numpy as np

from exfuse.data.datasets import open_dataset
from exfuse.data.find_images import find_images
from exfuse.data.samples import Sample, UInt8Array, read_image, spread
from exfuse.data.synthetic import make_scene
from exfuse.errors import ConfigError
from exfuse.models.storage.metadata import ModelMetadata, check_classes

SCENES = 8  # drawn if no images are given
LONGEST_SIDE = 1024  # of an image that is compared, in pixels


def export_samples(
    info: ModelMetadata, data: str | Path | None, split: str, images: str | Path | None, limit: int
) -> list[Sample]:
    """Returns images to check an export with, spread evenly over those available; drawn scenes if none are given.

    Args:
        info: The model's metadata.
        data: A labelled data set, as for `open_dataset`.
        split: The data set's split to use.
        images: Images without labels instead: a file, a folder or a glob.
        limit: Largest number of images to read.

    Raises:
        ConfigError: If both `data` and `images` are given.
        DataError: If an image cannot be read, or the data set has other classes than the model.
    """
    if data is not None and images is not None:
        raise ConfigError("data and images were both given; give only one of them")
    if data is not None:
        dataset = open_dataset(data, split)
        check_classes(info, dataset)
        ignored = dataset.classes.ignore_index
        samples = [_cropped(dataset[index]) for index in spread(len(dataset), limit)]
        return [Sample(s.image, np.where(s.mask == ignored, info.ignore_index, s.mask)) for s in samples]
    if images is None:
        return [_unlabelled(make_scene(seed).image, info) for seed in range(SCENES)]
    paths = list(find_images([str(images)]).values())
    return [_cropped(_unlabelled(read_image(paths[index]), info)) for index in spread(len(paths), limit)]


def _cropped(sample: Sample) -> Sample:
    """Returns a sample cropped to `LONGEST_SIDE`, because all samples are kept in memory and computed untiled."""
    image, mask = (np.ascontiguousarray(array[:LONGEST_SIDE, :LONGEST_SIDE]) for array in (sample.image, sample.mask))
    return Sample(image, mask)


def _unlabelled(image: UInt8Array, info: ModelMetadata) -> Sample:
    """Returns an image with a mask in which every pixel is ignored."""
    return Sample(image, np.full(image.shape[:2], info.ignore_index, dtype=np.uint8))
