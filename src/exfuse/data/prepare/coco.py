"""COCO's instances as semantic masks of PASCAL VOC's 21 classes."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from exfuse.data.classes import voc_classes
from exfuse.data.layouts import inside
from exfuse.data.prepare.tree import PreparedTree, check_counts, into_folder
from exfuse.data.prepare.voc import Progress
from exfuse.data.samples import UInt8Array, image_size
from exfuse.errors import ConfigError, DataError, brief
from exfuse.outputs.folder import OutputFolder

# COCO's category names for VOC's classes, where they are called otherwise.
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
# What the rows of an annotation file must hold.
ROWS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int, "category_id": int, "area": (int, float), "segmentation": (list, dict)},
    "categories": {"id": int, "name": str},
}
# An image is taken if the areas of its annotations of VOC's classes add up to more than this many pixels.
MIN_AREA = 1000
CORNERS = 3  # that a polygon has at least


@into_folder
def prepare_coco(
    coco: Path, output: OutputFolder, splits: tuple[str, ...], partial: bool, progress: Progress = lambda: None
) -> dict[str, int]:
    """Adds COCO's images to a folder that holds "trainaug", and the list "mixed": trainaug and these.

    Pixels that two classes claim are ignored; a crowd counts as its class. Images with 1,000 or fewer annotated pixels
    of VOC's classes are left out.

    Args:
        coco: The folder with `annotations/instances_SPLIT.json` and the images in `SPLIT/`.
        output: The folder made from VOC 2012 and SBD.
        splits: For example "train2017"; each once.
        partial: Accept other numbers of images than were published.
        progress: Called after each image that is taken.

    Returns:
        Number of images taken, in "mixed", and of val images in it: 0.

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
    taken: list[str] = []
    for split in splits:
        annotations = coco / "annotations" / f"instances_{split}.json"
        content = _read_json(annotations)
        labels = _labels_of_categories(content, annotations)
        if split in PUBLISHED_COCO and not partial:
            check_counts({split: len(content["images"])}, {split: PUBLISHED_COCO[split]}, annotations)
        _check_listed(content, annotations)
        of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in content["annotations"]:
            if row["category_id"] in labels:
                of_image[row["image_id"]].append(row)
        for row in content["images"]:
            wanted = of_image[row["id"]]
            if sum(annotation["area"] for annotation in wanted) <= MIN_AREA:
                continue
            image = inside(coco / split, row["file_name"])
            if not image.is_file():
                raise DataError(f"{image}: no such image, but {annotations.name} lists it")
            name, (height, width) = f"coco_{image.stem}", (row["height"], row["width"])
            if image_size(image) != (height, width):
                raise DataError(f"{image}: not {width} x {height} pixels, as {annotations.name} says")
            try:
                mask = draw_semantic_mask(wanted, labels, height, width)
            except DataError as error:
                raise DataError(f"{annotations}: image {row['id']}: {error}") from error
            tree.add(name, image, mask, classes)
            taken.append(name)
            progress()
    mixed = [*trainaug, *taken]
    tree.check_no_leak(mixed, val)
    tree.write_list("mixed", mixed)
    return {"COCO": len(taken), "mixed": len(mixed), "val images in mixed": len(set(mixed) & set(val))}


def _check_listed(content: dict[str, Any], path: Path) -> None:
    """Checks that all images that have annotations are listed."""
    known = {row["id"] for row in content["images"]}
    if strange := {row["image_id"] for row in content["annotations"]} - known:
        raise DataError(f"{path}: annotations of image {min(strange)}, which it does not list")


def draw_semantic_mask(
    annotations: list[dict[str, Any]], labels: dict[int, int], height: int, width: int
) -> UInt8Array:
    """Returns the classes of an image's pixels, uint8 `(H, W)`: 0 where nothing is, 255 where two classes are.

    Args:
        annotations: COCO's, as polygons or run lengths.
        labels: Category id -> class index.
        height: Of the image.
        width: Of the image.

    Raises:
        ConfigError: If pycocotools is not installed.
        DataError: If a segmentation is none.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ConfigError("COCO's annotations need pycocotools: pip install 'exfuse[data]'") from error
    drawn = np.zeros((height, width), dtype=np.uint8)
    for annotation in annotations:
        try:
            runs = _run_lengths(annotation["segmentation"], height, width)
            if runs is None:
                continue
            region, label = coco_mask.decode(runs).astype(bool), labels[annotation["category_id"]]
            drawn[region] = np.where((drawn[region] == 0) | (drawn[region] == label), label, 255)
        except Exception as error:  # pycocotools raises all kinds
            why = f"{type(error).__name__}: {brief(error)}"
            raise DataError(f"its segmentations cannot be drawn ({why})") from error
    return drawn


def _run_lengths(shape: Any, height: int, width: int) -> Any:
    """Returns one of COCO's forms of a segmentation as pycocotools' own; None if it has no area."""
    from pycocotools import mask as coco_mask

    if isinstance(shape, list):
        if not shape or any(len(polygon) % 2 for polygon in shape):
            raise ValueError("not a list of polygons")
        polygons = [polygon for polygon in shape if len(polygon) >= 2 * CORNERS]  # others have no area
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) if polygons else None
    return coco_mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape


def _labels_of_categories(content: dict[str, Any], path: Path) -> dict[int, int]:
    """Returns COCO's category id -> VOC's class index."""
    ids = {row["name"]: row["id"] for row in content["categories"]}
    names = voc_classes().names
    wanted = {COCO_NAMES.get(name, name): index for index, name in enumerate(names) if index > 0}
    missing = sorted(set(wanted) - set(ids))
    if missing:
        raise DataError(f"{path}: lacks the categories {', '.join(missing)}")
    return {ids[name]: index for name, index in wanted.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key, wanted in ROWS.items():
            if not isinstance(content[key], list):
                raise DataError(f"{path}: {key!r} is not a list")
            for number, row in enumerate(content[key]):
                for name, kinds in wanted.items():
                    if not isinstance(row.get(name), kinds):
                        raise DataError(f"{path}: {key}[{number}] has no {name!r}, or one of a wrong type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO's instances ({type(error).__name__}: {error})") from error
    return content
