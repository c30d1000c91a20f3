"""Folders of images for classification, and the views of them."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data.image_folder import (
    ClassificationAugmentation,
    ClassifiedImage,
    central_view,
    check_image_folder,
    open_image_folder,
    resize,
)
from exfuse.errors import DataError, shown

NO_TTA = ClassificationAugmentation(
    crop_size=(32, 48), area=(0.25, 1.0), flip=0.5, brightness=0.0, contrast=0.0, saturation=0.0
)


def write_folder(root: Path, split: str = "train", classes: tuple[str, ...] = ("cat", "ant"), count: int = 2) -> Path:
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 30), (10 * label, 10 * index, 0)).save(folder / f"{index}.png")
    return root


def gradient(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def test_classes_are_the_folders_in_alphabetical_order(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "list.csv").write_text("no class")
    dataset = open_image_folder(root, "train")
    assert dataset.class_names == ("ant", "cat")
    assert [(path.parent.name, path.name, label) for path, label in dataset.entries] == [
        ("ant", "0.png", 0),
        ("ant", "1.png", 0),
        ("cat", "0.png", 1),
        ("cat", "1.png", 1),
    ]
    sample = dataset[3]
    assert (sample.image.shape, sample.label, sample.target.shape) == ((30, 40, 3), 1, ())
    assert sample.image[0, 0].tolist() == [0, 10, 0]


def test_folders_that_hold_no_classes_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes=("only",))
    with pytest.raises(DataError, match=r"val: .*val/CLASS/IMAGE"):
        open_image_folder(root, "val")
    with pytest.raises(DataError, match=r"train: .*classes.*\b1$"):
        open_image_folder(root, "train")
    (root / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty: .*class"):
        open_image_folder(root, "train")


@pytest.mark.parametrize("split", ["../elsewhere", "/etc", "train/../../elsewhere"])
def test_s7_a_split_stays_within_the_folder(split: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match=f"{re.escape(shown(split))} .*out of"):
        open_image_folder(tmp_path / "photos", split)


def test_a_broken_image_is_found_before_training(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    dataset = open_image_folder(root, "train")
    seen: list[int] = []
    check_image_folder(dataset, lambda: seen.append(1))
    assert len(seen) == len(dataset)
    (root / "train" / "cat" / "1.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"cat/1\.png: .*readable"):
        check_image_folder(dataset)
    (root / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cat/1\.png: .*no such"):
        check_image_folder(dataset)


def test_an_image_over_the_limits_is_refused_from_its_header(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    Image.new("L", (20_000, 1)).save(root / "train" / "ant" / "long.png")
    with pytest.raises(DataError, match=r"long\.png: .*20000 x 1\b"):
        check_image_folder(open_image_folder(root, "train"))


@pytest.mark.parametrize("size", [(30, 40), (500, 20), (20, 500), (1, 1), (600, 400)])
def test_crops_have_the_wanted_size_whatever_the_image(size: tuple[int, int]) -> None:
    for seed in range(20):
        augmented = NO_TTA(ClassifiedImage(gradient(*size), 3), np.random.default_rng(seed))
        assert (augmented.image.shape, augmented.image.dtype, augmented.label) == ((32, 48, 3), np.uint8, 3)


def test_an_augmented_image_is_a_function_of_its_generator() -> None:
    sample = ClassifiedImage(gradient(96, 128), 0)
    first, again, other = (NO_TTA(sample, np.random.default_rng(seed)).image for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_crops_show_the_share_of_the_image_that_was_asked_for() -> None:
    sample = ClassifiedImage(gradient(400, 400), 0)
    shares = []
    for seed in range(200):
        image = NO_TTA(sample, np.random.default_rng(seed)).image.astype(float)
        shares.append((np.ptp(image[..., 0]) / 255) * (np.ptp(image[..., 1]) / 255))
    assert 0.2 < min(shares) < 0.3
    assert max(shares) > 0.9
    assert 0.55 < np.mean(shares) < 0.66  # uniform between 0.25 and 1, the largest of them refused at some shapes


def test_flips_come_as_often_as_asked_for() -> None:
    sample = ClassifiedImage(gradient(64, 64), 0)
    flipped = 0
    for seed in range(200):
        image = NO_TTA(sample, np.random.default_rng(seed)).image.astype(int)
        flipped += bool(image[0, 0, 0] > image[0, -1, 0])
    assert 75 < flipped < 125


@pytest.mark.parametrize("size", [(100, 100), (97, 230), (230, 97), (32, 32), (31, 300)])
def test_the_central_view_is_the_middle(size: tuple[int, int]) -> None:
    view = central_view(gradient(*size), 64, (64, 48))
    assert view.shape == (64, 48, 3)
    assert abs(float(view[..., 0].mean()) - 127.5) < 4
    assert abs(float(view[..., 1].mean()) - 127.5) < 4


def test_shrinking_averages_so_that_fine_stripes_become_grey() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, (16, 16)).astype(int) - 127).max() <= 1
