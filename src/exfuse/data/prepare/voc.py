"""PASCAL VOC 2012, and SBD's additional annotations ("trainaug")."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from exfuse.atomic_io import read_file
from exfuse.data.classes import voc_classes
from exfuse.data.datasets import open_dataset
from exfuse.data.files import inside, read_names
from exfuse.data.prepare.matlab import read_field
from exfuse.data.prepare.tree import PreparedTree, check_counts, into_folder
from exfuse.data.samples import Sample, UInt8Array, check_sample, read_image
from exfuse.errors import DataError, without_path
from exfuse.outputs.folder import OutputFolder

# Numbers of images with a segmentation: PASCAL VOC 2012 (Everingham et al., IJCV 2015); SBD (Hariharan et al., ICCV
# 2011); and both together without VOC's val images.
PUBLISHED_VOC = {"train": 1464, "val": 1449}
PUBLISHED_SBD = {"SBD": 11355, "trainaug": 10582}
MAX_ANNOTATION = 4 * 2**20  # bytes in one of SBD's files
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")

Progress = Callable[[], None]


@into_folder
def prepare_voc(voc: Path, output: OutputFolder, partial: bool, progress: Progress = lambda: None) -> dict[str, int]:
    """Adds the train and val splits of VOC 2012, and removes lists that were made from earlier ones.

    Args:
        voc: The folder `VOC2012`, with JPEGImages, SegmentationClass and ImageSets.
        output: The folder to write to.
        partial: Whether to accept other numbers of images than published.
        progress: Called after each image.

    Returns:
        Number of images by split.

    Raises:
        DataError: If a file is missing or broken, or images are missing.
    """
    classes = voc_classes()
    for folder in VOC_FOLDERS:
        if not (voc / folder).is_dir():
            raise DataError(f"{voc}: no folder {folder}; give the folder VOC2012 itself, such as VOCdevkit/VOC2012")
    splits = {split: open_dataset(voc, split) for split in PUBLISHED_VOC}
    if any(dataset.classes.names != classes.names for dataset in splits.values()):
        raise DataError(f"{voc}: its classes.json has other classes than VOC 2012; give VOC 2012 as downloaded")
    counts = {split: len(dataset) for split, dataset in splits.items()}
    if not partial:
        check_counts(counts, PUBLISHED_VOC, voc)
    tree = PreparedTree(output)
    tree.start(classes)
    tree.drop_lists("trainaug", "mixed")
    for dataset in splits.values():
        for index, entry in enumerate(dataset.entries):
            tree.add(entry.name, entry.image, dataset[index].mask, classes)
            progress()
    names = {split: [entry.name for entry in dataset.entries] for split, dataset in splits.items()}
    tree.check_no_leak(names["train"], names["val"])
    for split, split_names in names.items():
        tree.write_list(split, split_names)
    return counts


@into_folder
def prepare_sbd(sbd: Path, output: OutputFolder, partial: bool, progress: Progress = lambda: None) -> dict[str, int]:
    """Adds SBD's images to a folder made by `prepare_voc`, and writes the list "trainaug".

    The list contains VOC's train split and SBD's images, except those in VOC's val split. If an image has masks in
    both, VOC's finer one is kept.

    Args:
        sbd: The folder with `img`, `cls`, `train.txt` and `val.txt` (in the archive: benchmark_RELEASE/dataset).
        output: The folder made from VOC 2012.
        partial: Whether to accept other numbers of images than published.
        progress: Called after each image that SBD adds.

    Returns:
        Number of images in SBD, of images in "trainaug", and of val images in "trainaug", which is 0.

    Raises:
        DataError: If a file is missing or broken, images are missing, or a val image would be trained on.
    """
    tree, classes = PreparedTree(output), voc_classes()
    tree.drop_lists("trainaug", "mixed")
    train, val = (tree.read_list(split, "exfuse data prepare voc") for split in PUBLISHED_VOC)
    names = [name for split in ("train", "val") for _, name in read_names(sbd / f"{split}.txt")]
    added = sorted(set(names) - set(train) - set(val))
    trainaug = [*train, *added]
    counts = {"SBD": len(names), "trainaug": len(trainaug)}
    if not partial:
        check_counts(counts, PUBLISHED_SBD, sbd)
    for name in added:
        image, annotation = inside(sbd / "img", f"{name}.jpg"), inside(sbd / "cls", f"{name}.mat")
        mask = read_sbd_mask(annotation)
        check_sample(Sample(read_image(image), mask), len(classes), classes.ignore_index, image, annotation)
        tree.add(name, image, mask, classes)
        progress()
    tree.check_no_leak(trainaug, val)
    tree.write_list("trainaug", trainaug)
    return counts | {"val images in trainaug": len(set(trainaug) & set(val))}


def read_sbd_mask(path: Path) -> UInt8Array:
    """Reads the class mask of one of SBD's MATLAB files, uint8 `(H, W)`; 0 is background.

    Raises:
        DataError: If the file is missing or is not one of SBD's annotations.
    """
    try:
        mask = read_field(read_file(path, MAX_ANNOTATION), "GTcls", "Segmentation")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not one of SBD's annotations ({without_path(error)})") from error
    if mask.size == 0 or not np.isin(mask, np.arange(256)).all():
        raise DataError(f"{path}: GTcls.Segmentation is not a label map with values 0 to 255")
    return mask.astype(np.uint8)
