"""Data sets that are damaged, incomplete or something else: the error names what and where."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data import doctor
from exfuse.data.datasets import open_dataset
from exfuse.data.doctor import open_leniently
from exfuse.data.files import MAX_DESCRIPTION
from exfuse.errors import ConfigError, DataError, shown
from support.small_datasets import (
    FOLDERS,
    FORMATS,
    labels_of,
    pixels_of,
    save,
    three_classes,
    write_data,
    write_description,
)


@pytest.mark.parametrize("format_name", ["lists", "folders"])
def test_an_image_that_is_named_twice_is_refused(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    if format_name == "lists":
        with (tmp_path / "train.txt").open("a") as file:
            file.write("a\n")
    else:
        save(tmp_path / "images" / "train" / "a.bmp", pixels_of("a"))
    with pytest.raises(DataError, match=r"/a\.png\b.*'a'|'a'.*/a\.png\b"):
        open_dataset(tmp_path, "train")


@FORMATS
def test_a_label_outside_the_classes_is_named_with_count_and_place(tmp_path: Path, format_name: str):
    mask = labels_of("a")
    mask[2, 3] = mask[4, 1] = mask[5, 7] = 40
    write_data(tmp_path / "data", format_name)
    path = next((tmp_path / "data" / FOLDERS[format_name][1]).rglob("a.png"))
    save(path, mask)
    splits = {"train": "train.txt" if format_name == "lists" else "train"}
    dataset = open_dataset(write_description(tmp_path / "d.yaml", format=format_name, splits=splits), "train")
    index = [entry.name for entry in dataset.entries].index("a")
    with pytest.raises(DataError) as raised:
        dataset[index]
    assert re.search(rf"{path}: 3 .* 40, .* row 2, column 3\b", str(raised.value))


def test_a_mask_of_another_size_is_named(tmp_path: Path):
    write_data(tmp_path, "lists")
    save(tmp_path / "masks" / "c.png", np.zeros((6, 9), dtype=np.uint8))
    with pytest.raises(DataError) as raised:
        open_dataset(tmp_path, "train")[0]
    mask, image = tmp_path / "masks" / "c.png", tmp_path / "images" / "c.png"
    assert re.search(rf"^{mask}: .*\b9 x 6\b.* {image} .*\b8 x 6\b", str(raised.value))


@FORMATS
@pytest.mark.parametrize("part", [0, 1], ids=["image", "mask"])
def test_a_truncated_file_is_named(tmp_path: Path, format_name: str, part: int):
    write_data(tmp_path, format_name)
    (tmp_path / "classes.json").write_text(json.dumps(three_classes()))
    path = next((tmp_path / FOLDERS[format_name][part]).rglob("b.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="readable") as raised:
        list(open_dataset(tmp_path, "train"))
    assert str(path) in str(raised.value)


@FORMATS
def test_a_missing_mask_is_named_when_the_set_is_opened(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    path = next((tmp_path / FOLDERS[format_name][1]).rglob("b.png"))
    path.unlink()
    with pytest.raises(DataError, match="no such mask") as raised:
        open_dataset(tmp_path, "train")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("format_name", ["lists", "voc"])
def test_a_missing_image_is_named_with_the_line_that_lists_it(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    (tmp_path / FOLDERS[format_name][0] / "b.png").unlink()
    with pytest.raises(DataError, match=r"train\.txt.* 3\b.*'b'"):
        open_dataset(tmp_path, "train")


def test_an_image_that_went_missing_later_is_named(tmp_path: Path):
    dataset = open_dataset(write_data(tmp_path, "lists"), "train")
    (tmp_path / "images" / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png.*no such"):
        dataset[0]


def test_a_mask_that_lacks_its_images_rotation_is_named(tmp_path: Path):
    write_data(tmp_path, "lists")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels_of("c")).save(tmp_path / "images" / "c.png", exif=exif)
    with pytest.raises(DataError, match=r"c\.png.* 8 x 6\b.* 6 x 8\b.*EXIF"):
        open_dataset(tmp_path, "train")[0]


@pytest.mark.parametrize(
    "values", [np.zeros((6, 8), dtype=np.uint16), np.zeros((6, 8, 3), dtype=np.uint8)], ids=["16_bit", "rgb"]
)
def test_a_mask_that_is_not_one_byte_a_pixel_is_refused(tmp_path: Path, values: np.ndarray):
    write_data(tmp_path, "lists")
    (tmp_path / "classes.json").write_text(json.dumps(three_classes()))
    save(tmp_path / "masks" / "c.png", values)
    with pytest.raises(DataError, match=r"c\.png.*8-bit"):
        open_dataset(tmp_path, "train")[0]


@pytest.mark.parametrize("format_name", ["lists", "voc"])
@pytest.mark.parametrize("name", ["../../outside/a", "sub/../../../outside/a", "{absolute}/outside/a"])
def test_a_list_cannot_lead_out_of_the_data_set(tmp_path: Path, format_name: str, name: str):
    root = write_data(tmp_path / "data", format_name)
    (root / FOLDERS[format_name][0] / "sub").mkdir()
    save(tmp_path / "outside" / "a.png", pixels_of("a"))
    named = name.format(absolute=tmp_path)
    listed = root / ("train.txt" if format_name == "lists" else "ImageSets/Segmentation/train.txt")
    listed.write_text(f"{named}\n")
    with pytest.raises(DataError, match="out of") as raised:
        open_dataset(root, "train")
    assert all(fact in str(raised.value) for fact in (str(listed), "line 1", shown(named)))


@FORMATS
def test_a_split_cannot_lead_out_of_the_data_set(tmp_path: Path, format_name: str):
    write_data(tmp_path / "data", format_name)
    write_data(tmp_path / "outside", format_name)
    place = {
        "lists": "../outside/train.txt",
        "folders": "../../outside/images/train",
        "voc": "../../../outside/ImageSets/Segmentation/train",
    }[format_name]
    described = write_description(tmp_path / "d.yaml", format=format_name, splits={"train": place})
    with pytest.raises(DataError, match=rf"out of .*{tmp_path / 'data'}"):
        open_dataset(described, "train")


@pytest.mark.parametrize("content", ["a\0b\n", "a" * 300 + "\n", "\0\1\2\3"], ids=["zero_byte", "long", "binary"])
def test_a_list_of_anything_else_is_a_data_error(tmp_path: Path, content: str):
    write_data(tmp_path, "lists")
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(DataError, match=r"train\.txt"):
        open_dataset(tmp_path, "train")


def test_a_list_in_another_encoding_is_named(tmp_path: Path):
    write_data(tmp_path, "lists")
    for content in ("a\nb\u00fc\n".encode("latin-1"), "a\n".encode("utf-16") + b"\0"):
        (tmp_path / "train.txt").write_bytes(content)
        with pytest.raises(DataError, match=r"train\.txt.*( 2\b|readable)"):
            open_dataset(tmp_path, "train")


def as_other_set(tmp_path: Path, source: str) -> Path:
    write_data(tmp_path / "data", "lists")
    path = tmp_path / source
    if source == "itself.yaml":
        write_description(path, root="itself.yaml")
    elif source == "another.yaml":
        write_description(tmp_path / "d.yaml")
        write_description(path, root="d.yaml")
    elif source == "nowhere.yaml":
        write_description(path, root="gone")
    elif source == "zero.yaml":
        path.write_text('root: "a\\0b"\nformat: lists\nsplits: {train: train.txt}\nnames: [a, b]\n')
    elif source == "splits.yaml":
        write_description(path, splits={"train": "images"})
    elif source == "own.yaml":
        write_description(path, root=".", splits={"train": "own.yaml"})
        (tmp_path / "images").mkdir()
    elif source == "empty.yaml":
        write_description(path, splits={"train": ""})
    elif source == "folder.yaml":
        path.mkdir()
    elif source == "photo.jpg":
        path.write_bytes(b"photo")
    return path


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("itself.yaml", "itself.yaml is not a folder"),
        ("another.yaml", "d.yaml is not a folder"),
        ("nowhere.yaml", "gone is not a folder"),
        ("zero.yaml", "zero.yaml: "),
        ("splits.yaml", "data/images: not a readable list of images"),
        ("own.yaml", "own.yaml: line 1: no image named"),
        ("empty.yaml", "empty.yaml: splits.train"),
        ("folder.yaml", "folder.yaml: not a readable YAML file"),
        ("photo.jpg", "photo.jpg: not a folder"),
        ("gone", "gone: no such"),
    ],
)
def test_what_is_no_data_set_is_named_in_one_line(source: str, named: str, tmp_path: Path):
    with pytest.raises((DataError, ConfigError)) as raised:
        open_dataset(as_other_set(tmp_path, source), "train")
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["", "..", "/", "a\0b", "x" * 100_000, "a/../../b", "train\n"])
@FORMATS
def test_names_of_splits_are_checked(split: str, format_name: str, tmp_path: Path):
    write_data(tmp_path, format_name)
    with pytest.raises(DataError) as raised:
        open_dataset(tmp_path, split)
    assert len(str(raised.value)) < 1500


HUGE = "x" * 100_000


def put(root: Path, name: str, content: str) -> Path:
    (root / name).write_text(content)
    return root / name if name.endswith(".yaml") else root


LONG_MESSAGES: dict[str, Callable[[Path], Path]] = {
    "line": lambda root: put(root, "train.txt", HUGE),
    "missing name": lambda root: put(root, "train.txt", "/".join(["x" * 200] * 4)),
    "name that leads out": lambda root: put(root, "train.txt", "../" * 300),
    "class name": lambda root: put(
        root,
        "classes.json",
        json.dumps(three_classes(classes=[{"id": n, "name": HUGE, "color": [0, 0, 0]} for n in (0, 1)])),
    ),
    "id": lambda root: put(
        root, "classes.json", json.dumps(three_classes(classes=[{"id": HUGE, "name": "a", "color": [0, 0, 0]}]))
    ),
    "colour": lambda root: put(
        root, "classes.json", json.dumps(three_classes(classes=[{"id": 0, "name": "a", "color": [0] * 50_000}]))
    ),
    "ignored": lambda root: put(root, "classes.json", json.dumps(three_classes(ignore_index=10**4000))),
    "JSON": lambda root: put(root, "classes.json", HUGE),
    "key": lambda root: put(root, "d.yaml", f"root: .\n? {HUGE}\n: 1"),
    "root": lambda root: put(
        root, "d.yaml", f"root: {HUGE}\nformat: lists\nsplits: {{train: train.txt}}\nnames: [a, b]"
    ),
    "format": lambda root: put(root, "d.yaml", f"root: .\nformat: {HUGE}\nsplits: {{train: train.txt}}\nnames: [a, b]"),
    "splits": lambda root: put(
        root,
        "d.yaml",
        "root: .\nformat: lists\nnames: [a, b]\nsplits:\n" + "".join(f"  {n}: x\n" for n in range(2_000)),
    ),
    "split": lambda root: put(root, "d.yaml", f"root: .\nformat: lists\nnames: [a, b]\nsplits: {{train: {HUGE}}}"),
    "names": lambda root: put(root, "d.yaml", f"root: .\nformat: lists\nnames: [{HUGE}, {HUGE}]\nsplits: {{train: a}}"),
    "names a word": lambda root: put(root, "d.yaml", f"root: .\nformat: lists\nnames: {HUGE}\nsplits: {{train: a}}"),
    "syntax": lambda root: put(root, "d.yaml", f"[{HUGE}"),
    "tag": lambda root: put(root, "d.yaml", f"!{HUGE} a"),
    "twice": lambda root: put(root, "d.yaml", f"{HUGE[:1000]}: a\n{HUGE[:1000]}: b"),
    "size": lambda root: put(root, "d.yaml", "#" * (MAX_DESCRIPTION + 1)),
}


@pytest.mark.parametrize("what", LONG_MESSAGES)
def test_no_message_repeats_much_of_what_is_wrong(what: str, tmp_path: Path):
    write_data(tmp_path, "lists")
    with pytest.raises((DataError, ConfigError)) as raised:
        open_dataset(LONG_MESSAGES[what](tmp_path), "train")
    assert len(str(raised.value)) < 600 + 2 * len(str(tmp_path))


def test_a_name_that_stands_with_its_suffix_gets_a_hint(tmp_path: Path):
    write_data(tmp_path, "lists")
    (tmp_path / "train.txt").write_text("a.png\n")
    with pytest.raises(DataError, match=r"train\.txt.* 1\b.*'a\.png'.*suffix"):
        open_dataset(tmp_path, "train")


def test_what_a_list_lacks_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_data(tmp_path, "lists")
    monkeypatch.setattr(doctor, "MAX_MISSING", 1000)
    (tmp_path / "train.txt").write_text("a\n" * 1001)
    assert len(open_leniently(tmp_path, "train")[1]) == 1000
    (tmp_path / "train.txt").write_text("a\n" * 100_000 + "".join(f"{number}\n" for number in range(100_000)))
    with pytest.raises(DataError, match=rf"{tmp_path}.*\b1,000\b.*'train'"):
        open_leniently(tmp_path, "train")


@FORMATS
def test_a_split_without_images_is_refused(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    if format_name == "folders":
        (tmp_path / "images" / "test").mkdir()
    else:
        (tmp_path / ("test.txt" if format_name == "lists" else "ImageSets/Segmentation/test.txt")).write_text("\n")
    with pytest.raises(DataError, match=r"'test' .*no images"):
        open_dataset(tmp_path, "test")


@FORMATS
def test_a_split_that_a_folder_lacks_is_named(tmp_path: Path, format_name: str):
    with pytest.raises(DataError, match="trian"):
        open_dataset(write_data(tmp_path, format_name), "trian")


def test_a_folder_that_holds_no_data_set_is_told_what_is_expected(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"'val'.*masks/val.*JPEGImages.*\.yaml"):
        open_dataset(tmp_path, "val")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone.*no such"):
        open_dataset(tmp_path / "gone", "train")
