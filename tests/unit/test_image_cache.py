"""Decoded splits: the same samples from one file, which is whole, of this content, or not used."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data import image_cache
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.image_cache import PIXELS, SIDES, MemmapDataset, build_image_cache
from exfuse.data.loader import AugmentedDataset, Batch, ResumableBatchSampler, training_loader
from exfuse.data.stats import compute_stats
from exfuse.errors import DataError
from exfuse.manifest import MANIFEST
from support.loading import AUGMENTATION, assert_same_batches


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns where this test's decoded images go."""
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    """Returns a copy of the scenes, of which one is cut to a size of its own."""
    root = Path(shutil.copytree(pack, tmp_path / "copy"))
    dataset = open_dataset(root, "train")
    for path in (dataset.entries[3].image, dataset.entries[3].mask):
        with Image.open(path) as image:
            image.crop((0, 0, 51, 37)).save(path)
    return root


def decoded_train(root: Path) -> tuple[SegmentationDataset, MemmapDataset]:
    dataset = open_dataset(root, "train")
    return dataset, build_image_cache(dataset, compute_stats(dataset).fingerprint)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        decoded_train(root)
    return str(caught.value)


def test_samples_are_those_of_the_files(copy: Path) -> None:
    dataset, found = decoded_train(copy)
    assert len(found) == len(dataset) == 12
    assert found[3].image.shape == (37, 51, 3)
    for index in range(len(dataset)):
        expected = dataset[index]
        np.testing.assert_array_equal(found[index].image, expected.image, strict=True)
        np.testing.assert_array_equal(found[index].mask, expected.mask, strict=True)
        assert found.image_path(index) == dataset.image_path(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_of_training_samples_is_the_same(pack: Path, workers: int) -> None:
    def batches(images: SegmentationDataset | MemmapDataset) -> list[Batch]:
        return list(
            training_loader(AugmentedDataset(images, AUGMENTATION, 7), ResumableBatchSampler(12, 4, 0, 6, 7), workers)
        )

    dataset, found = decoded_train(pack)
    assert_same_batches(batches(found), batches(dataset))


def test_a_sample_can_be_changed_without_changing_the_cache(pack: Path) -> None:
    _, found = decoded_train(pack)
    before = found[0].image.copy()
    found[0].image[:] = 0
    np.testing.assert_array_equal(found[0].image, before)


def test_images_are_decoded_once(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded_train(pack)
    dataset = open_dataset(pack, "train")
    fingerprint = compute_stats(dataset).fingerprint
    monkeypatch.setattr(SegmentationDataset, "__getitem__", None)
    assert len(build_image_cache(dataset, fingerprint)[0].mask.shape) == 2


def test_changed_files_are_decoded_anew(copy: Path, cache: Path) -> None:
    decoded_train(copy)
    dataset = open_dataset(copy, "train")
    with Image.open(dataset.entries[0].image) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(dataset.entries[0].image)
    _, found = decoded_train(copy)
    np.testing.assert_array_equal(found[0].image, dataset[0].image)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", [PIXELS, SIDES, MANIFEST])
@pytest.mark.parametrize("damage", ["empty", "short", "one byte", "gone", "zeroed", "flipped"])
def test_what_is_damaged_is_decoded_again(pack: Path, cache: Path, name: str, damage: str) -> None:
    decoded_train(pack)
    (folder,) = cache.iterdir()
    path = folder / name
    content = path.read_bytes()
    half = len(content) // 2
    left = {"empty": b"", "short": content[:10], "one byte": content[:-1], "zeroed": bytes(len(content))}
    left["flipped"] = content[:half] + bytes([content[half] ^ 16]) + content[half + 1 :]
    path.unlink()
    if damage in left:
        path.write_bytes(left[damage])
    dataset, found = decoded_train(pack)
    for index in range(len(dataset)):
        np.testing.assert_array_equal(found[index].image, dataset[index].image)
        np.testing.assert_array_equal(found[index].mask, dataset[index].mask)
    assert [path.name for path in cache.iterdir()] == [folder.name], "nothing is left beside it"
    assert path.read_bytes() == content


def test_a_file_cut_off_later_is_an_error_not_a_crash(pack: Path, cache: Path) -> None:
    _, found = decoded_train(pack)
    (folder,) = cache.iterdir()
    with (folder / PIXELS).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=str(folder / PIXELS)):
        found[1]


def test_too_little_space_is_said_before_anything_is_written(
    pack: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(pack)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    needed = 4 * sum(open_dataset(pack, "train")[index].mask.size for index in range(12))
    message = refusal(pack)
    assert re.search(rf"\b{needed:,} bytes\b.*\b1,000\b", message)
    assert "data.cache=false" in message
    assert list(cache.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(pack: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.os, "fsync", fail)
    assert "No space left on device" in refusal(pack)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_an_error(pack: Path, cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file")
    assert "EXFUSE_CACHE" in refusal(pack)


def test_a_broken_image_is_named_and_leaves_nothing(copy: Path, cache: Path) -> None:
    dataset = open_dataset(copy, "train")
    fingerprint = compute_stats(dataset).fingerprint
    path = dataset.entries[5].image
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=path.name):
        build_image_cache(dataset, fingerprint)
    assert list(cache.iterdir()) == []
