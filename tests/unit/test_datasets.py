import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from exfuse.data.classes import voc_palette
from exfuse.data.classes_file import read_classes
from exfuse.data.datasets import open_dataset
from exfuse.data.samples import IMAGE_SUFFIXES
from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.errors import DataError
from support.small_datasets import (
    FORMATS,
    SPLITS,
    labels_of,
    pixels_of,
    save,
    three_classes,
    write_data,
    write_description,
)


@FORMATS
@pytest.mark.parametrize("split", SPLITS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, format_name: str, split: str):
    dataset = open_dataset(write_data(tmp_path, format_name), split)
    names = sorted(SPLITS[split]) if format_name == "folders" else SPLITS[split]
    assert [entry.name for entry in dataset.entries] == names
    assert len(dataset) == len(names)
    samples = list(dataset)
    assert len(samples) == len(names)
    for name, sample in zip(names, samples, strict=True):
        np.testing.assert_array_equal(sample.image, pixels_of(name))
        np.testing.assert_array_equal(sample.mask, labels_of(name))
    with pytest.raises(IndexError):
        dataset[len(names)]


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_list_finds_images_of_every_suffix(tmp_path: Path, suffix: str):
    write_data(tmp_path, "lists")
    (tmp_path / "images" / "a.png").unlink()
    save(tmp_path / "images" / f"a{suffix}", pixels_of("a"))
    assert open_dataset(tmp_path, "train").entries[1].image == tmp_path / "images" / f"a{suffix}"


def test_blank_lines_and_spaces_in_a_list_are_skipped(tmp_path: Path):
    write_data(tmp_path, "lists")
    (tmp_path / "train.txt").write_text("\n  a \r\n\n\tb\n\n")
    assert [entry.name for entry in open_dataset(tmp_path, "train").entries] == ["a", "b"]


def test_folders_are_searched_to_any_depth_for_images_alone(tmp_path: Path):
    for name in ("z", "berlin/a", "berlin/b.c"):
        save(tmp_path / "images" / "train" / f"{name}.png", pixels_of("a"))
        save(tmp_path / "masks" / "train" / f"{name}.png", labels_of("a"))
    (tmp_path / "images" / "train" / "z.png").rename(tmp_path / "images" / "train" / "z.PNG")
    (tmp_path / "images" / "train" / "notes.txt").write_text("no image")
    assert [entry.name for entry in open_dataset(tmp_path, "train").entries] == ["berlin/a", "berlin/b.c", "z"]


def test_the_voc_tree_has_the_voc_classes(tmp_path: Path):
    classes = open_dataset(write_data(tmp_path, "voc"), "train").classes
    assert len(classes) == 21
    assert (classes.names[0], classes.names[15], classes.ignore_index) == ("background", "person", 255)
    # The colours of VOC's own development kit.
    colors = dict(zip(classes.names, classes.palette, strict=True))
    assert colors["background"] == (0, 0, 0)
    assert colors["aeroplane"] == (128, 0, 0)
    assert colors["person"] == (192, 128, 128)
    assert colors["tvmonitor"] == (0, 64, 128)


def test_classes_json_names_the_classes(tmp_path: Path):
    write_data(tmp_path, "lists")
    content = three_classes(ignore_index=254)
    content["classes"].reverse()
    (tmp_path / "classes.json").write_text(json.dumps(content))
    classes = open_dataset(tmp_path, "train").classes
    assert classes.names == ("name 0", "name 1", "name 2")
    assert classes.palette == ((0, 20, 30), (1, 20, 30), (2, 20, 30))
    assert classes.ignore_index == 254


def test_classes_json_without_ignore_index_means_255(tmp_path: Path):
    content = three_classes()
    del content["ignore_index"]
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert read_classes(tmp_path / "classes.json").ignore_index == 255


def test_the_synthetic_pack_names_its_own_classes(pack: Path):
    assert open_dataset(pack, "val").classes == SCENE_CLASSES


@pytest.mark.parametrize("format_name", ["lists", "folders"])
def test_labels_that_nobody_named_are_numbered(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    part = "train/" if format_name == "folders" else ""
    save(tmp_path / "masks" / f"{part}a.png", np.full((6, 8), 4, dtype=np.uint8))
    classes = open_dataset(tmp_path, "train").classes
    assert classes.names == ("class_0", "class_1", "class_2", "class_3", "class_4")
    assert classes.palette == voc_palette(5)
    assert classes.ignore_index == 255


@pytest.mark.parametrize("format_name", ["lists", "folders"])
def test_numbered_classes_are_the_same_in_every_split(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    part = "train/" if format_name == "folders" else ""
    save(tmp_path / "masks" / f"{part}a.png", np.full((6, 8), 4, dtype=np.uint8))
    assert open_dataset(tmp_path, "val").classes == open_dataset(tmp_path, "train").classes


def test_a_label_far_from_all_others_is_no_reason_for_two_hundred_classes(tmp_path: Path):
    write_data(tmp_path, "folders")
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[0, :3] = 1, 2, 200
    save(tmp_path / "masks" / "train" / "a.png", mask)
    with pytest.raises(DataError, match=r"train/a\.png.* 200,.* 0, 1, 2\b"):
        open_dataset(tmp_path, "train")
    mask[0, :3] = 1, 2, 60
    save(tmp_path / "masks" / "train" / "a.png", mask)
    assert len(open_dataset(tmp_path, "train").classes) == 61


def test_masks_of_0_and_255_alone_are_refused_with_what_to_do(tmp_path: Path):
    save(tmp_path / "images" / "train" / "a.png", pixels_of("a"))
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[2:4] = 255
    save(tmp_path / "masks" / "train" / "a.png", mask)
    with pytest.raises(DataError, match=r"label_map.*255: 1"):
        open_dataset(tmp_path, "train")
    described = {
        "root": ".", "format": "folders", "splits": {"train": "train"}, "names": ["rest", "thing"],
        "label_map": {255: 1},
    }  # fmt: skip
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(described))
    np.testing.assert_array_equal(open_dataset(tmp_path / "data.yaml", "train")[0].mask, mask // 255)


def test_masks_of_one_label_still_make_two_classes(tmp_path: Path):
    save(tmp_path / "images" / "train" / "a.png", pixels_of("a"))
    save(tmp_path / "masks" / "train" / "a.png", np.zeros((6, 8), dtype=np.uint8))
    assert open_dataset(tmp_path, "train").classes.names == ("class_0", "class_1")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"classes": {"a": 1}}),
        json.dumps(three_classes(classes=[])),
        json.dumps(three_classes(classes=[{"id": 0, "name": "only", "color": [0, 0, 0]}])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0, 0]} for n in (0, 2)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0, 0]} for n in (1, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "color": [0, 0, 0]} for n in (0, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a"} for n in (0, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0]} for n in (0, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0, 256]} for n in (0, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0, -1]} for n in (0, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": "red"} for n in (0, 1)])),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0, 0]} for n in (0, float("inf"))])),
        json.dumps(three_classes(ignore_index=None)),
        json.dumps(three_classes(ignore_index=256)),
        json.dumps(three_classes(ignore_index=-1)),
        json.dumps(three_classes(ignore_index=2)),
        json.dumps(three_classes(classes=[{"id": n, "name": "a", "color": [0, 0, 0]} for n in range(257)])),
    ],
    ids=[
        "empty", "broken", "a_list", "no_classes", "nested_too_deep", "rows_are_no_list", "no_rows", "one_row",
        "id_gap", "id_twice", "no_name", "no_color", "short_color", "color_above_255", "color_below_0",
        "color_is_a_word", "id_infinite", "ignore_null", "ignore_above_255", "ignore_below_0", "ignore_is_a_class",
        "more_than_bytes",
    ],
)  # fmt: skip
def test_a_wrong_classes_json_is_named(tmp_path: Path, content: str):
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        read_classes(path)
    assert str(path) in str(raised.value)


def test_classes_json_in_another_encoding_is_named(tmp_path: Path):
    path = tmp_path / "classes.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"classes\.json.*readable"):
        read_classes(path)


def test_an_image_is_turned_upright_by_its_exif_tag(tmp_path: Path):
    write_data(tmp_path, "lists")
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:, 12:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    (tmp_path / "images" / "c.png").unlink()
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "images" / "c.jpg", exif=exif, quality=95)
    save(tmp_path / "masks" / "c.png", upright[..., 0] // 255)
    sample = open_dataset(tmp_path, "train")[0]
    assert sample.image.shape == upright.shape
    np.testing.assert_allclose(sample.image.astype(int), upright, atol=12)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_text_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path):
    write_data(tmp_path / "data", "lists")
    (tmp_path / "data" / "train.txt").write_text("c\r\na\r\n", encoding=encoding)
    (tmp_path / "data" / "classes.json").write_text(json.dumps(three_classes()), encoding=encoding)
    described = write_description(tmp_path / "d.yaml")
    described.write_text(described.read_text(), encoding=encoding)
    for source in (tmp_path / "data", described):
        assert [entry.name for entry in open_dataset(source, "train").entries] == ["c", "a"]
    assert open_dataset(tmp_path / "data", "train").classes.names[0] == "name 0"


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a", "a"]},
        {"names": ["a", " "]},
        {"names": ["a", "b" * 201]},
        {"names": ["a", "\ud800"]},
        {"names": ["a", 1]},
        {"ids": [0, True]},
        {"ids": ["0", "1"]},
        {"ids": [0.0, 1.0]},
        {"colors": [[0, 0, 0], [0, 0, 0.5]]},
        {"colors": [[0, 0, 0], [0, 0, True]]},
        {"ignore_index": "255"},
        {"ignore_index": float("nan")},
    ],
    ids=lambda change: str(*change.items()).encode("ascii", "replace").decode(),
)
def test_classes_are_what_they_are_said_to_be(change: dict, tmp_path: Path):
    parts = {"ids": [0, 1], "names": ["a", "b"], "colors": [[0, 0, 0], [1, 1, 1]], "ignore_index": 255} | change
    rows = [
        {"id": i, "name": n, "color": c} for i, n, c in zip(parts["ids"], parts["names"], parts["colors"], strict=True)
    ]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows, "ignore_index": parts["ignore_index"]}))
    with pytest.raises(DataError, match=r"classes\.json"):
        read_classes(tmp_path / "classes.json")


def test_camvid_is_read_as_its_read_me_says(camvid: Path):
    train, val = open_dataset(camvid, "train"), open_dataset(camvid, "val")
    assert (len(train), len(val)) == (367, 101)
    assert train.entries[0].name == "0001TP_006690"
    assert val.classes.names[0] == "sky"
    assert val.classes.names[-1] == "bicyclist"
    assert (len(val.classes), val.classes.ignore_index) == (11, 255)
    assert val.classes.palette[3] == (128, 64, 128)
    sample = val[0]
    assert sample.image.shape == (360, 480, 3)
    assert set(np.unique(sample.mask)) <= {*range(11), 255}


def test_ccp_is_read_as_its_read_me_says(ccp: Path):
    train, val = open_dataset(ccp, "train"), open_dataset(ccp, "val")
    assert (len(train), len(val), len(val.classes)) == (700, 104, 12)
    sample = val[0]
    assert max(sample.mask.shape) == 360
    assert set(np.unique(sample.mask)) <= set(range(12))


def test_the_fine_masks_of_ccp_are_refused_with_the_merged_classes(ccp: Path):
    dataset = open_dataset(ccp, "val")
    fine = replace(
        dataset, entries=tuple(replace(e, mask=ccp / "masks_fine" / e.mask.name) for e in dataset.entries[:3])
    )
    with pytest.raises(DataError, match=r"\b0 to 11\b.*\b255\b"):
        list(fine)
