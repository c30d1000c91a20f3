import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exfuse.data import parallel
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.doctor import open_leniently, validate
from exfuse.data.samples import Sample
from exfuse.data.stats import compute_stats
from exfuse.errors import DataError

# The tables of the data sets' read-me files: share of all pixels in percent, 255 last, and images with the class.
CAMVID_VAL_PERCENT = [9.177, 25.962, 0.564, 28.953, 8.719, 16.336, 0.892, 3.078, 1.746, 0.651, 2.217, 1.703]
CAMVID_VAL_IMAGES = [101] * 11
CCP_VAL_PERCENT = [76.337, 2.892, 1.173, 3.780, 4.575, 2.869, 4.012, 0.732, 0.350, 1.115, 1.516, 0.649, 0.0]
CCP_VAL_IMAGES = [104, 103, 96, 75, 49, 30, 58, 17, 19, 102, 77, 76]


def fingerprint(root: Path, split: str = "train") -> str:
    return compute_stats(open_dataset(root, split)).fingerprint


def test_counts_are_those_of_a_plain_loop_over_the_masks(pack: Path):
    found = compute_stats(open_dataset(pack, "train"))
    names = (pack / "train.txt").read_text().split()
    masks = [np.array(Image.open(pack / "masks" / f"{name}.png")) for name in names]
    for label in range(7):
        assert found.pixel_counts[label] == sum((mask == label).sum() for mask in masks)
        assert found.image_counts[label] == sum((mask == label).any() for mask in masks)
        assert found.containing_image_pixels[label] == sum(
            (mask != 255).sum() for mask in masks if (mask == label).any()
        )
    assert found.ignored == sum((mask == 255).sum() for mask in masks) > 0
    assert found.pixel_counts.dtype == found.image_counts.dtype == found.containing_image_pixels.dtype == np.int64
    assert found.pixel_counts.sum() + found.ignored == 12 * 144 * 192


def test_a_class_that_is_absent_counts_nothing(own_pack: Path):
    dataset = open_dataset(own_pack, "val")
    for index, entry in enumerate(dataset.entries):
        mask = np.zeros((144, 192), dtype=np.uint8)
        mask[0, : index + 1] = 255
        mask[1, :5] = 3 if index == 2 else 0
        Image.fromarray(mask).save(entry.mask)
    found = compute_stats(dataset)
    assert found.pixel_counts.tolist() == [4 * 144 * 192 - 10 - 5, 0, 0, 5, 0, 0, 0]
    assert found.image_counts.tolist() == [4, 0, 0, 1, 0, 0, 0]
    assert found.containing_image_pixels.tolist() == [4 * 144 * 192 - 10, 0, 0, 144 * 192 - 3, 0, 0, 0]
    assert found.ignored == 10


def test_labels_are_counted_as_they_are_after_the_label_map(pack: Path):
    dataset = open_dataset(pack, "val")
    plain = compute_stats(dataset)
    label_map = np.arange(256, dtype=np.uint8)
    label_map[[1, 2]] = 2, 255
    mapped = compute_stats(replace(dataset, label_map=label_map))
    assert mapped.pixel_counts[1] == 0
    assert mapped.pixel_counts[2] == plain.pixel_counts[1] > 0
    assert mapped.ignored == plain.ignored + plain.pixel_counts[2] > plain.ignored


def test_progress_is_told_of_every_image(pack: Path):
    calls = []
    compute_stats(open_dataset(pack, "train"), lambda: calls.append(1))
    assert len(calls) == 12


def test_a_scan_stops_at_a_label_outside_the_classes(own_pack: Path):
    path = own_pack / "masks" / "train_0007.png"
    mask = np.array(Image.open(path))
    mask[10, 20] = 99
    Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match=r"train_0007\.png: 1 .*label 99\b.*row 10, column 20\b"):
        compute_stats(open_dataset(own_pack, "train"))


def test_the_same_files_elsewhere_have_the_same_fingerprint(pack: Path, own_pack: Path):
    first = fingerprint(pack)
    assert len(first) == 64
    assert fingerprint(pack) == first
    assert fingerprint(own_pack) == first


def test_splits_have_fingerprints_of_their_own(pack: Path):
    assert fingerprint(pack, "train") != fingerprint(pack, "val")


def test_one_changed_byte_of_an_image_changes_the_fingerprint(own_pack: Path):
    before = fingerprint(own_pack)
    path = own_pack / "images" / "train_0011.jpg"
    content = bytearray(path.read_bytes())
    assert content[6:10] == b"JFIF"
    content[15] ^= 1  # of the density, which changes no pixel
    path.write_bytes(content)
    assert fingerprint(own_pack) != before


def test_one_added_byte_of_a_mask_changes_the_fingerprint(own_pack: Path):
    before = fingerprint(own_pack)
    with (own_pack / "masks" / "train_0000.png").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(own_pack) != before


def test_another_name_changes_the_fingerprint(own_pack: Path):
    before = fingerprint(own_pack)
    (own_pack / "images" / "train_0003.jpg").rename(own_pack / "images" / "other.jpg")
    (own_pack / "masks" / "train_0003.png").rename(own_pack / "masks" / "other.png")
    names = (own_pack / "train.txt").read_text()
    (own_pack / "train.txt").write_text(names.replace("train_0003", "other"))
    assert fingerprint(own_pack) != before


def test_masks_of_two_images_exchanged_change_the_fingerprint(own_pack: Path):
    before = fingerprint(own_pack)
    first, second = own_pack / "masks" / "train_0001.png", own_pack / "masks" / "train_0002.png"
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert fingerprint(own_pack) != before


LABEL_MAP = np.arange(256, dtype=np.uint8)
MEANINGS: dict[str, Callable[[SegmentationDataset], SegmentationDataset]] = {
    "names swapped": lambda data: with_classes(
        data, names=(data.classes.names[1], data.classes.names[0], *data.classes.names[2:])
    ),
    "names cut elsewhere": lambda data: with_classes(data, names=('a", "b', *data.classes.names[1:])),
    "a colour": lambda data: with_classes(data, palette=((1, 2, 3), *data.classes.palette[1:])),
    "ignored label": lambda data: with_classes(data, ignore_index=254),
    "an identical label map": lambda data: replace(data, label_map=LABEL_MAP),
    "a label map": lambda data: replace(data, label_map=np.where(LABEL_MAP == 9, 255, LABEL_MAP)),
    "order": lambda data: replace(data, entries=data.entries[::-1]),
    "number": lambda data: replace(data, entries=data.entries[:-1]),
    "bytes of a name": lambda data: replace(
        data, entries=(replace(data.entries[0], name=f"{data.entries[0].name}\udce9"), *data.entries[1:])
    ),
}


def with_classes(dataset: SegmentationDataset, **changes: Any) -> SegmentationDataset:
    return replace(dataset, classes=replace(dataset.classes, **changes))


def test_each_thing_that_labels_mean_is_in_the_fingerprint(own_pack: Path):
    for path in (own_pack / "masks").iterdir():  # without the ignored label, so that it can be another
        Image.fromarray(np.zeros((144, 192), dtype=np.uint8)).save(path)
    dataset = open_dataset(own_pack, "val")
    found = {name: compute_stats(change(dataset)).fingerprint for name, change in MEANINGS.items()}
    found["nothing"] = compute_stats(dataset).fingerprint
    assert len(set(found.values())) == len(found)


def test_the_fingerprint_is_as_its_description_says(own_pack: Path):
    dataset = open_dataset(own_pack, "val")
    classes = dataset.classes
    meaning = {"names": classes.names, "palette": classes.palette, "ignore_index": 255, "label_map": None}
    parts = [json.dumps(meaning).encode()]
    for entry in dataset.entries:
        parts += [entry.name.encode(), entry.image.read_bytes(), entry.mask.read_bytes()]
    expected = sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()
    assert compute_stats(dataset).fingerprint == expected


def test_names_that_are_not_utf_8_are_scanned_and_examined(own_pack: Path):
    name = os.fsdecode(b"caf\xe9 \xff")
    for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
        (own_pack / folder / f"val_0000{suffix}").rename(own_pack / folder / f"{name}{suffix}")
    (own_pack / "val.txt").write_bytes(os.fsencode((own_pack / "val.txt").read_text().replace("val_0000", name)))
    (own_pack / "images" / "val_0001.jpg").write_bytes(b"no image")
    dataset, missing = open_leniently(own_pack, "val")
    assert dataset.entries[0].name == name
    assert [finding.kind for finding in validate(dataset, missing).issues if finding.severity == "error"] == ["image"]
    json.dumps(validate(dataset, missing).to_json()).encode()
    compute_stats(replace(dataset, entries=dataset.entries[:1]))


SAMPLE = Sample(np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8))


def test_a_file_that_vanishes_while_it_is_scanned_is_named(own_pack: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = open_dataset(own_pack, "val")
    monkeypatch.setattr(SegmentationDataset, "__getitem__", lambda self, index: SAMPLE)
    dataset.entries[0].image.unlink()
    with pytest.raises(DataError, match=r"val_0000\.jpg: .*No such file"):
        compute_stats(dataset)


def test_splits_longer_than_what_is_queued_are_scanned_in_order(pack: Path, monkeypatch: pytest.MonkeyPatch):
    before = fingerprint(pack)
    monkeypatch.setattr(parallel, "PENDING_RESULTS", 5)
    assert fingerprint(pack) == before


def test_camvid_has_the_pixels_that_its_read_me_says(camvid: Path):
    assert_stats_match(camvid, CAMVID_VAL_PERCENT, CAMVID_VAL_IMAGES)


def test_ccp_has_the_pixels_that_its_read_me_says(ccp: Path):
    assert_stats_match(ccp, CCP_VAL_PERCENT, CCP_VAL_IMAGES)


def assert_stats_match(root: Path, percent: list[float], images: list[int]) -> None:
    found = compute_stats(open_dataset(root, "val"))
    counts = np.array([*found.pixel_counts, found.ignored])
    np.testing.assert_allclose(100 * counts / counts.sum(), percent, atol=5.1e-4)
    assert found.image_counts.tolist() == images
