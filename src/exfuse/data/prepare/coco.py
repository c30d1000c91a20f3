"""COCO's instances as semantic masks with PASCAL VOC's 21 classes."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from exfuse.data.classes import voc_classes
from exfuse.data.files import inside, read_text
from exfuse.data.image_files import MAX_PIXELS, MAX_SIDE
from exfuse.data.prepare.regions import boundary_of, draw_region
from exfuse.data.prepare.tree import PreparedTree, check_counts, into_folder
from exfuse.data.prepare.voc import Progress
from exfuse.data.samples import UInt8Array, image_size
from exfuse.errors import ConfigError, DataError, shown, without_path
from exfuse.outputs.folder import OutputFolder

# VOC's class names -> COCO's category names, where they differ.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
# Images by split (Lin et al., ECCV 2014, and cocodataset.org).
PUBLISHED_COCO = {"train2014": 82_783, "val2014": 40_504, "train2017": 118_287, "val2017": 5_000}
# The required keys of the rows of an annotation file: types, and the range of numbers.
ID = ((int,), -(2**53), 2**53)
ROWS: dict[str, dict[str, tuple[tuple[type, ...], float, float]]] = {
    "images": {
        "id": ID, "file_name": ((str,), 0, 0), "height": ((int,), 1, MAX_SIDE), "width": ((int,), 1, MAX_SIDE)
    },
    "annotations": {
        "image_id": ID, "category_id": ID, "area": ((int, float), 0, MAX_PIXELS), "segmentation": ((list, dict), 0, 0)
    },
    "categories": {"id": ID, "name": ((str,), 0, 0)},
}  # fmt: skip
MAX_INSTANCES = 2**30  # bytes in an annotation file; train2017's has less than half as many
# An image is used if the areas of its annotations of VOC's classes add up to more than this many pixels.
MIN_AREA = 1000
MAX_BOUNDARIES = 5_000_000  # pixels that the sides of an image's polygons cross: ten seconds of drawing
MAX_DRAWN = 20_000_000_000  # pixels of an image times its number of regions: a minute or two of drawing


@into_folder
def prepare_coco(
    coco: Path, output: OutputFolder, splits: tuple[str, ...], partial: bool, progress: Progress = lambda: None
) -> dict[str, int]:
    """Adds COCO's images to a folder that contains "trainaug", and writes the list "mixed" with both.

    Pixels claimed by two classes are ignored; a crowd counts as its class. Images with at most 1,000 annotated pixels
    of VOC's classes are skipped.

    Args:
        coco: The folder with `annotations/instances_SPLIT.json` and the images in `SPLIT/`.
        output: The folder made from VOC 2012 and SBD.
        splits: For example "train2017"; each once.
        partial: Whether to accept other numbers of images than published.
        progress: Called after each image that is added.

    Returns:
        Number of COCO's images added, of images in "mixed", and of val images in "mixed", which is 0.

    Raises:
        ConfigError: If a split is named twice.
        DataError: If a file is missing or broken, images are missing, or a val image would be trained on.
    """
    if len(set(splits)) < len(splits):
        raise ConfigError(f"--splits {','.join(splits)}: name each split once")
    tree, classes = PreparedTree(output), voc_classes()
    tree.drop_lists("mixed")
    trainaug = tree.read_list("trainaug", "exfuse data prepare sbd")
    val = tree.read_list("val", "exfuse data prepare voc")
    taken: dict[str, None] = {}  # an ordered set
    for split in splits:
        annotations = coco / "annotations" / f"instances_{split}.json"
        content = _read_instances(annotations)
        labels = _labels_of_categories(content, annotations)
        if split in PUBLISHED_COCO and not partial:
            check_counts({split: len(content["images"])}, {split: PUBLISHED_COCO[split]}, annotations)
        _check_listed(content, annotations)
        image_annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in content["annotations"]:
            if row["category_id"] in labels:
                image_annotations[row["image_id"]].append(row)
        for row in content["images"]:
            wanted = image_annotations[row["id"]]
            if sum(annotation["area"] for annotation in wanted) <= MIN_AREA:
                continue
            image = inside(coco / split, row["file_name"])
            if not image.is_file():
                raise DataError(f"{image}: no such image, but {annotations.name} lists it")
            name, (height, width) = f"coco_{image.stem}", (row["height"], row["width"])
            if name in taken:
                raise DataError(f"{image}: {shown(name)} exists already; two images would share one mask")
            if image_size(image) != (height, width):
                raise DataError(f"{image}: not {width} x {height} pixels, as listed in {annotations.name}")
            try:
                mask = draw_semantic_mask(wanted, labels, height, width)
            except DataError as error:
                raise DataError(f"{annotations}: image {row['id']}: {error}") from error
            tree.add(name, image, mask, classes)
            taken[name] = None
            progress()
    mixed = [*trainaug, *taken]
    tree.check_no_leak(mixed, val)
    tree.write_list("mixed", mixed)
    return {"COCO": len(taken), "mixed": len(mixed), "val images in mixed": len(set(mixed) & set(val))}


def _check_listed(content: dict[str, Any], path: Path) -> None:
    """Checks that every image with annotations is listed."""
    known = {row["id"] for row in content["images"]}
    if unlisted := {row["image_id"] for row in content["annotations"]} - known:
        raise DataError(f"{path}: has annotations of image {min(unlisted)}, but does not list the image")


def draw_semantic_mask(
    annotations: list[dict[str, Any]], labels: dict[int, int], height: int, width: int
) -> UInt8Array:
    """Returns the classes of an image's pixels, uint8 `(H, W)`: 0 for the background, 255 where classes overlap.

    Args:
        annotations: COCO's annotations, with polygons or run lengths.
        labels: Category id -> class index.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        DataError: If a segmentation is invalid, does not fit the image or would take too long to draw.
    """
    regions = sum(len(annotation["segmentation"]) for annotation in annotations)
    if regions * height * width > MAX_DRAWN:
        raise DataError(f"{regions:,} regions in {width} x {height} pixels would take too long to draw")
    drawn, boundary = np.zeros((height, width), dtype=np.uint8), 0.0
    for number, annotation in enumerate(annotations):
        try:
            region = draw_region(annotation["segmentation"], height, width)
        except (ValueError, OverflowError) as error:
            name = annotation.get("id", f"number {number}")
            raise DataError(f"its segmentations cannot be drawn (annotation {name}: {error})") from error
        boundary += boundary_of(annotation["segmentation"])
        if boundary > MAX_BOUNDARIES:
            raise DataError(f"its regions' boundaries are longer than {MAX_BOUNDARIES:,} pixels")
        label = labels[annotation["category_id"]]
        drawn[region] = np.where((drawn[region] == 0) | (drawn[region] == label), label, 255)
    return drawn


def _labels_of_categories(content: dict[str, Any], path: Path) -> dict[int, int]:
    """Returns COCO's category id -> VOC's class index."""
    ids = {row["name"]: row["id"] for row in content["categories"]}
    names = voc_classes().names
    wanted = {COCO_NAMES.get(name, name): index for index, name in enumerate(names) if index > 0}
    missing = sorted(set(wanted) - set(ids))
    if missing:
        raise DataError(f"{path}: missing categories: {', '.join(missing)}")
    if len(ids) < len(content["categories"]):
        raise DataError(f"{path}: two categories have the same name")
    return {ids[name]: index for name, index in wanted.items()}


def _read_instances(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(read_text(path, MAX_INSTANCES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a file of COCO's instances ({without_path(error)})") from error
    for key, wanted in ROWS.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path}: not a file of COCO's instances (no list {key!r})")
        ids: set[int] = set()
        for number, row in enumerate(rows):
            _check_row(row, wanted, f"{path}: {key}[{number}]")
            if "id" in row:  # optional in annotations
                _check_row(row, {"id": ID}, f"{path}: {key}[{number}]")
                if row["id"] in ids:
                    raise DataError(f"{path}: {key}[{number}] has the same 'id' as an earlier one, {row['id']}")
                ids.add(row["id"])
    return content


def _check_row(row: Any, wanted: dict[str, tuple[tuple[type, ...], float, float]], place: str) -> None:
    for name, (kinds, least, most) in wanted.items():
        value = row.get(name) if isinstance(row, dict) else None
        if type(value) not in kinds:  # unlike isinstance, this refuses True as a number
            raise DataError(f"{place}: {name!r} is missing or has a wrong type")
        if isinstance(value, int | float) and not least <= value <= most:
            raise DataError(f"{place}: {name!r} must be from {least:,} to {most:,}")
