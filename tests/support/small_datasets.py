"""A data set of three images in each format."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

FORMATS = pytest.mark.parametrize("format_name", ["lists", "folders", "voc"])


SPLITS = {"train": ["c", "a", "b"], "val": ["e", "d"]}


FOLDERS = {"lists": ("images", "masks"), "folders": ("images", "masks"), "voc": ("JPEGImages", "SegmentationClass")}


def pixels_of(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def labels_of(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (6, 8))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_data(root: Path, format_name: str) -> Path:
    images, masks = FOLDERS[format_name]
    for split, names in SPLITS.items():
        part = f"{split}/" if format_name == "folders" else ""
        for name in names:
            save(root / images / f"{part}{name}.png", pixels_of(name))
            save(root / masks / f"{part}{name}.png", labels_of(name))
        listed = {"lists": root / f"{split}.txt", "voc": root / "ImageSets" / "Segmentation" / f"{split}.txt"}
        if format_name in listed:
            listed[format_name].parent.mkdir(parents=True, exist_ok=True)
            listed[format_name].write_text("\n".join(names) + "\n")
    return root


def write_description(path: Path, **entries: object) -> Path:
    content = {
        "root": "data",
        "format": "lists",
        "splits": {"train": "train.txt", "val": "val.txt"},
        "names": ["ground", "tree", "house"],
    }
    path.write_text(yaml.safe_dump({key: value for key, value in (content | entries).items() if value is not None}))
    return path


def three_classes(**entries: object) -> dict[str, object]:
    rows = [{"id": index, "name": f"name {index}", "color": [index, 20, 30]} for index in range(3)]
    return {"classes": rows, "ignore_index": 255} | entries


def ignore_everything_in(mask: Path) -> None:
    with Image.open(mask) as image:
        labels = np.full_like(np.array(image), 255)
    Image.fromarray(labels).save(mask)
