"""Cityscapes and ADE20K as they are downloaded; the other layouts are tested with the data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data.classes import CITYSCAPES, CITYSCAPES_IDS
from exfuse.data.datasets import open_dataset
from exfuse.errors import DataError

SIZE = (24, 32)


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, city, frame in (("train", "aachen", 1), ("train", "zurich", 2), ("val", "munster", 3)):
        name = f"{city}_{frame:06d}_000019"
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        save(image, tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        ids = np.resize(np.arange(34, dtype=np.uint8), SIZE)
        for kind in ("labelIds", "instanceIds", "color"):
            save(ids if kind == "labelIds" else image, tmp_path / "gtFine" / split / city / f"{name}_gtFine_{kind}.png")
    return tmp_path


def test_cityscapes_is_read_as_it_is(cityscapes: Path) -> None:
    train = open_dataset(cityscapes, "train")
    assert [entry.name for entry in train.entries] == ["aachen/aachen_000001_000019", "zurich/zurich_000002_000019"]
    assert train.classes == CITYSCAPES
    assert len(CITYSCAPES.names) == len(CITYSCAPES.palette) == len(CITYSCAPES_IDS) == 19
    ids = np.resize(np.arange(34), SIZE)
    mask = train[0].mask
    for place, stored in enumerate(CITYSCAPES_IDS):
        assert (mask[ids == stored] == place).all()
    assert (mask[~np.isin(ids, CITYSCAPES_IDS)] == 255).all()
    assert CITYSCAPES.names[CITYSCAPES_IDS.index(26)] == "car"
    assert CITYSCAPES.names[CITYSCAPES_IDS.index(33)] == "bicycle"


def test_a_missing_cityscapes_file_or_split_is_named(cityscapes: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit/test: no such folder"):
        open_dataset(cityscapes, "test")
    (cityscapes / "gtFine/val/munster/munster_000003_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"munster_000003_000019_gtFine_labelIds\.png: no such mask"):
        open_dataset(cityscapes, "val")


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), tmp_path / "images" / split / f"{name}.jpg")
        save(np.resize(np.arange(151, dtype=np.uint8), SIZE), tmp_path / "annotations" / split / f"{name}.png")
    rows = [f"{n}\t0.1\t10\t2\tthing {n}, object {n}" for n in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return tmp_path


def test_ade20k_is_read_as_it_is(ade20k: Path) -> None:
    val = open_dataset(ade20k, "validation")
    assert [entry.name for entry in val.entries] == ["ADE_val_00000001"]
    assert len(val.classes) == 150
    assert val.classes.names[0] == "thing 1, object 1"
    stored = np.resize(np.arange(151), SIZE)
    mask = val[0].mask
    assert (mask[stored == 0] == 255).all()
    np.testing.assert_array_equal(mask[stored > 0], stored[stored > 0] - 1)


@pytest.mark.parametrize("content", [None, "Idx\tRatio\n1\t2\n", "Idx\n" + "1\t2\t3\t4\tname\n" * 149])
def test_ade20k_without_its_table_of_classes_is_refused(content: str | None, ade20k: Path) -> None:
    table = ade20k / "objectInfo150.txt"
    table.unlink()
    if content is not None:
        table.write_text(content)
    with pytest.raises(DataError, match=r"objectInfo150\.txt"):
        open_dataset(ade20k, "training")
