"""Dataset files, which say where a data set lies and what its labels mean."""

import re
from pathlib import Path

import numpy as np
import pytest

from exfuse.data.classes import voc_palette
from exfuse.data.datasets import open_dataset, read_dataset_file
from exfuse.errors import ConfigError, DataError
from support.small_datasets import FORMATS, SPLITS, labels_of, pixels_of, write_data, write_description


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
    assert re.search(f"^{path}: unknown .*'{written}'.*'{meant}'", str(raised.value))


def test_a_misspelt_split_of_a_dataset_file_gets_a_hint(tmp_path: Path):
    write_data(tmp_path / "data", "lists")
    path = write_description(tmp_path / "d.yaml")
    with pytest.raises(ConfigError) as raised:
        open_dataset(path, "trian")
    assert re.search(f"^{path}: .*split 'trian'.*'train'", str(raised.value))


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
