import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from exfuse.data import doctor
from exfuse.data.classes import voc_palette
from exfuse.data.classes_file import read_classes
from exfuse.data.datasets import open_dataset, read_dataset_file
from exfuse.data.doctor import open_leniently
from exfuse.data.files import MAX_DESCRIPTION
from exfuse.data.samples import IMAGE_SUFFIXES
from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.errors import ConfigError, DataError, shown

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


@pytest.mark.parametrize("format_name", ["lists", "folders"])
def test_an_image_that_is_named_twice_is_refused(tmp_path: Path, format_name: str):
    write_data(tmp_path, format_name)
    if format_name == "lists":
        with (tmp_path / "train.txt").open("a") as file:
            file.write("a\n")
    else:
        save(tmp_path / "images" / "train" / "a.bmp", pixels_of("a"))
    with pytest.raises(DataError, match=r"'a'.*/a.png"):
        open_dataset(tmp_path, "train")


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
    assert str(raised.value) == f"{mask}: the mask is 9 x 6, its image {image} is 8 x 6"


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
        ("gone", "gone.*no such"),
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


def put(root: Path, name: str, content: str) -> Path:
    (root / name).write_text(content)
    return root / name if name.endswith(".yaml") else root


@pytest.mark.parametrize("what", LONG_MESSAGES)
def test_no_message_repeats_much_of_what_is_wrong(what: str, tmp_path: Path):
    write_data(tmp_path, "lists")
    with pytest.raises((DataError, ConfigError)) as raised:
        open_dataset(LONG_MESSAGES[what](tmp_path), "train")
    assert len(str(raised.value)) < 600 + 2 * len(str(tmp_path))


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


@FORMATS
def test_a_dataset_file_maps_stored_values_to_labels(tmp_path: Path, format_name: str):
    write_data(tmp_path / "data", format_name)
    place = "{}.txt" if format_name == "lists" else "{}"
    path = write_description(
        tmp_path / "d.yaml",
        format=format_name,
        splits={split: place.format(split) for split in SPLITS},
        palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        ignore_index=200,
        label_map={0: 1, 1: 0, 255: 200},
    )
    dataset = open_dataset(path, "val")
    assert dataset.classes.names == ("ground", "tree", "house")
    assert dataset.classes.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert dataset.classes.ignore_index == 200
    for entry, sample in zip(dataset.entries, dataset, strict=True):
        stored = labels_of(entry.name)
        expected = np.select(
            [stored == 0, stored == 1, stored == 255], [np.uint8(1), np.uint8(0), np.uint8(200)], stored
        )
        assert sample.mask.dtype == np.uint8
        np.testing.assert_array_equal(sample.mask, expected)


def test_a_dataset_file_has_defaults_for_colours_and_the_ignored_label(tmp_path: Path):
    write_data(tmp_path / "data", "lists")
    dataset = open_dataset(write_description(tmp_path / "d.yaml"), "train")
    assert dataset.classes.palette == voc_palette(3)
    assert dataset.classes.ignore_index == 255
    assert dataset.label_map is None


def test_the_root_of_a_dataset_file_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_data(tmp_path / "data", "lists")
    (tmp_path / "described").mkdir()
    path = write_description(tmp_path / "described" / "d.yml", root="../data")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(open_dataset(path, "train")[0].image, pixels_of("c"))


def test_a_value_mapped_to_no_class_is_a_data_error(tmp_path: Path):
    write_data(tmp_path / "data", "lists")
    dataset = open_dataset(write_description(tmp_path / "d.yaml", label_map={1: 77}), "train")
    with pytest.raises(DataError, match=r"c\.png.*\blabel 77\b"):
        dataset[0]


@pytest.mark.parametrize(("written", "meant"), [("label_mop", "label_map"), ("pallete", "palette"), ("name", "names")])
def test_a_misspelt_key_of_a_dataset_file_gets_a_hint(tmp_path: Path, written: str, meant: str):
    path = write_description(tmp_path / "d.yaml", **{written: "x"})
    with pytest.raises(ConfigError) as raised:
        open_dataset(path, "train")
    assert str(raised.value).startswith(f"{path}: unknown key '{written}'; did you mean '{meant}'")


def test_a_misspelt_split_of_a_dataset_file_gets_a_hint(tmp_path: Path):
    write_data(tmp_path / "data", "lists")
    path = write_description(tmp_path / "d.yaml")
    with pytest.raises(ConfigError) as raised:
        open_dataset(path, "trian")
    assert str(raised.value) == f"{path}: no split 'trian'; did you mean 'train'?"


def test_a_dataset_file_may_call_the_format_by_its_older_name(tmp_path: Path):
    write_data(tmp_path / "data", "lists")
    newer, older = (tmp_path / name for name in ("newer.yaml", "older.yaml"))
    write_description(newer)
    older.write_text(newer.read_text().replace("format:", "layout:"))
    assert "layout:" in older.read_text()
    assert open_dataset(older, "train") == open_dataset(newer, "train")


@pytest.mark.parametrize("key", ["root", "format", "splits", "names"])
def test_a_missing_key_of_a_dataset_file_is_named(tmp_path: Path, key: str):
    path = write_description(tmp_path / "d.yaml", **{key: None})
    with pytest.raises(ConfigError, match=rf"d\.yaml.*'{key}'.*missing"):
        read_dataset_file(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "coco"),
        ("splits", ["train"]),
        ("names", ["only"]),
        ("names", [f"name {index}" for index in range(256)]),
        ("palette", [[0, 0, 0], [0, 0, 0], [0, 0, 256]]),
        ("palette", [[0, 0, 0], [0, 0, 0], [0, 0]]),
        ("palette", [[0, 0, 0], [0, 0, 0]]),
        ("ignore_index", 256),
        ("ignore_index", -1),
        ("ignore_index", 2),
        ("label_map", {256: 0}),
        ("label_map", {0: 256}),
        ("label_map", {"tree": 1}),
    ],
)
def test_a_wrong_value_in_a_dataset_file_is_named(tmp_path: Path, key: str, value: object):
    path = write_description(tmp_path / "d.yaml", **{key: value})
    with pytest.raises(ConfigError, match=key) as raised:
        read_dataset_file(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "word"])
def test_a_dataset_file_without_keys_is_told_so(tmp_path: Path, content: str):
    path = tmp_path / "d.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"d\.yaml.*keys"):
        read_dataset_file(path)


@pytest.mark.parametrize(
    "content",
    [b"root: [", b"\xff\xfe", b"root: \0", b"root: 2001-99-99", b"[" * 1_000, b"root: !!python/object:os.system {}"],
    ids=["open_bracket", "encoding", "zero_byte", "impossible_date", "nested_too_deep", "python_object"],
)
def test_an_unreadable_dataset_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "d.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_dataset_file(path)
    assert str(path) in str(raised.value)


def test_a_missing_dataset_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        open_dataset(tmp_path / "gone.yaml", "train")


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
