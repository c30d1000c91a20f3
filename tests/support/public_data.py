"""VOC 2012, SBD, COCO and image folders in their real formats, drawn small; the fixtures are known to every test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from exfuse.data.classes import VOC_NAMES, voc_palette
from exfuse.data.prepare.coco import COCO_NAMES
from exfuse.data.prepare.voc import prepare_sbd, prepare_voc

SIZE = (40, 60)  # height, width


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def label_map(seed: int) -> np.ndarray:
    """Returns an object on background with VOC's white border around it."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[8:30, 10:40] = 255
    mask[10:28, 12:38] = 1 + seed % 20
    return mask


def save_palette_png(mask: np.ndarray, path: Path) -> None:
    colors = np.array(voc_palette(256), dtype=np.uint8)
    colored = Image.fromarray(mask).convert("P")
    colored.putpalette(colors.ravel().tolist())
    colored.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A tree like VOC2012: three images to train on, two to validate, and one without a mask."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    splits = {"train": ["2007_01", "2007_02", "2008_03"], "val": ["2007_11", "2008_12"]}
    for index, name in enumerate([*splits["train"], *splits["val"]]):
        picture(index).save(root / "JPEGImages" / f"{name}.jpg")
        save_palette_png(label_map(index), root / "SegmentationClass" / f"{name}.png")
    picture(99).save(root / "JPEGImages" / "2009_99.jpg")
    for split, names in splits.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def sbd(tmp_path: Path, voc: Path) -> Path:
    """A tree like SBD's: one of VOC's train images, one of its val images, and two of its own."""
    root = tmp_path / "sbd"
    for folder in ("img", "cls"):
        (root / folder).mkdir(parents=True)
    for name in ("2008_03", "2008_12"):
        (root / "img" / f"{name}.jpg").write_bytes((voc / "JPEGImages" / f"{name}.jpg").read_bytes())
    for seed, name in enumerate(("2010_21", "2010_22")):
        picture(20 + seed).save(root / "img" / f"{name}.jpg")
    for seed, name in enumerate(("2008_03", "2008_12", "2010_21", "2010_22")):
        write_sbd_mask(root / "cls" / f"{name}.mat", label_map(seed + 7) % 255)
    (root / "train.txt").write_text("2008_12\n2010_21\n")
    (root / "val.txt").write_text("2008_03\n2010_22\n")
    return root


def write_sbd_mask(path: Path, mask: np.ndarray) -> None:
    boundaries = np.empty((20, 1), dtype=object)
    boundaries[:] = [[np.zeros(mask.shape, dtype=np.uint8)]] * 20
    present = np.unique(mask[mask > 0])[:, None]
    savemat(path, {"GTcls": {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}})


def categories() -> list[dict[str, Any]]:
    names = ["zebra", *(COCO_NAMES.get(name, name) for name in reversed(VOC_NAMES[1:]))]
    return [{"id": 3 * index + 1, "name": name} for index, name in enumerate(names)]


def id_of(voc_name: str) -> int:
    wanted = COCO_NAMES.get(voc_name, voc_name)
    return next(row["id"] for row in categories() if row["name"] == wanted)


def rectangle(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]


def annotation(name: str | None, image: int, shape: Any, area: float, crowd: int = 0) -> dict[str, Any]:
    category = 1 if name is None else id_of(name)
    return {"image_id": image, "category_id": category, "segmentation": shape, "area": area, "iscrowd": crowd}


def uncompressed_runs(region: np.ndarray) -> dict[str, Any]:
    flat = region.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"counts": counts if flat[0] == 0 else [0, *counts], "size": list(region.shape)}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A tree like COCO's: polygons, a crowd in run lengths, an overlap, a small object, and another category."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    crowd = np.zeros((80, 100), dtype=bool)
    crowd[40:70, 50:90] = True
    rows = [
        annotation("cat", 1, [rectangle(10, 10, 50, 50), rectangle(60, 5, 70, 25)], 1800),
        annotation("sofa", 1, [rectangle(30, 30, 60, 60)], 900),
        annotation("person", 2, uncompressed_runs(crowd), 1200, crowd=1),
        annotation("dog", 3, [rectangle(0, 0, 20, 50)], 1000),  # not more than 1,000
        annotation(None, 4, [rectangle(0, 0, 70, 90)], 6300),
    ]
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 80, "width": 100} for n in (1, 2, 3, 4)]
    for image in images:
        picture(50 + image["id"], (80, 100)).save(root / "train2017" / image["file_name"])
    content = {"images": images, "annotations": rows, "categories": categories()}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    image = np.full((72, 80, 3), rng.integers(60, 200, 3), dtype=np.uint8)
    if kind == "bars":
        image[:, :: int(rng.integers(6, 10))] = 255
    if kind == "dots":
        step = int(rng.integers(6, 10))
        image[::step, ::step] = 255
    return Image.fromarray(image)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images to train on and nine to validate, one folder a class. Read them, never write into them."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for name in ("bars", "dots", "plain"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw(name, rng).save(folder / f"{index}.png")
    return root


@pytest.fixture
def prepared(tmp_path: Path, voc: Path, sbd: Path) -> Path:
    output = tmp_path / "prepared"
    prepare_voc(voc, output, partial=True)
    prepare_sbd(sbd, output, partial=True)
    return output
