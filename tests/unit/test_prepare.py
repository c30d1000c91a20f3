"""From VOC 2012, SBD and COCO as they are downloaded to a folder that can be trained on."""

import json
import math
import random
import re
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import loadmat, savemat

from exfuse.data.classes import VOC_NAMES, voc_palette
from exfuse.data.datasets import open_dataset
from exfuse.data.prepare.coco import draw_semantic_mask, prepare_coco
from exfuse.data.prepare.matlab import read_field
from exfuse.data.prepare.regions import draw_region
from exfuse.data.prepare.tree import PreparedTree
from exfuse.data.prepare.voc import prepare_sbd, prepare_voc, read_sbd_mask
from exfuse.data.samples import image_size
from exfuse.errors import ConfigError, DataError, OutputError, shown
from exfuse.outputs.folder import claim_folder
from support.public_data import (
    SIZE,
    annotation,
    categories,
    id_of,
    label_map,
    rectangle,
    uncompressed_runs,
    write_sbd_mask,
)


@pytest.fixture
def prepared(tmp_path: Path, voc: Path, sbd: Path) -> Path:
    output = tmp_path / "prepared"
    prepare_voc(voc, output, partial=True)
    prepare_sbd(sbd, output, partial=True)
    return output


def test_voc_becomes_a_data_set_with_its_own_pixels(voc: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    counts = prepare_voc(voc, tmp_path / "out", partial=True, progress=lambda: seen.append(1))
    assert counts == {"train": 3, "val": 2}
    assert len(seen) == 5
    for split in ("train", "val"):
        made, original = open_dataset(tmp_path / "out", split), open_dataset(voc, split)
        assert made.classes == original.classes
        assert [entry.name for entry in made.entries] == [entry.name for entry in original.entries]
        for index in range(len(made)):
            np.testing.assert_array_equal(made[index].mask, original[index].mask)
            np.testing.assert_array_equal(made[index].image, original[index].image)
    assert (tmp_path / "out/images/2007_01.jpg").samefile(voc / "JPEGImages/2007_01.jpg")
    with Image.open(tmp_path / "out/masks/2007_01.png") as mask:
        assert mask.mode == "P"
        assert tuple(mask.getpalette()[3:6]) == voc_palette(2)[1]


def test_an_incomplete_download_is_noticed(voc: Path, sbd: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\b3 images in train\b.*\b1,464\b.*--partial"):
        prepare_voc(voc, tmp_path / "out", partial=False)
    assert not (tmp_path / "out").exists()
    prepare_voc(voc, tmp_path / "out", partial=True)
    with pytest.raises(DataError, match=r"\b4 images in SBD\b.*\b11,355\b"):
        prepare_sbd(sbd, tmp_path / "out", partial=False)


def test_sbd_adds_what_voc_does_not_have_and_no_val_image(voc: Path, sbd: Path, prepared: Path) -> None:
    assert (prepared / "trainaug.txt").read_text().split() == ["2007_01", "2007_02", "2008_03", "2010_21", "2010_22"]
    trainaug, train = open_dataset(prepared, "trainaug"), open_dataset(voc, "train")
    for index in range(3):  # VOC's own masks, though SBD has one of 2008_03
        np.testing.assert_array_equal(trainaug[index].mask, train[index].mask)
    for index, seed in ((3, 2), (4, 3)):
        np.testing.assert_array_equal(trainaug[index].mask, label_map(seed + 7) % 255)
    counts = prepare_sbd(sbd, prepared, partial=True)
    assert counts == {"SBD": 4, "trainaug": 5, "val images in trainaug": 0}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_sbd_masks_are_read_whatever_type_matlab_wrote(dtype: type, tmp_path: Path) -> None:
    mask = label_map(3) % 255
    write_sbd_mask(tmp_path / "a.mat", mask.astype(dtype))
    np.testing.assert_array_equal(read_sbd_mask(tmp_path / "a.mat"), mask)


def test_annotations_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(DataError, match=r"a\.mat: .*No such file"):
        read_sbd_mask(path)
    for content in (b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"\x00" * 500):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.mat: .*SBD"):
            read_sbd_mask(path)
    savemat(path, {"GTinst": {"Segmentation": label_map(0)}})
    with pytest.raises(DataError, match=r"a\.mat: .*variable GTcls"):
        read_sbd_mask(path)
    savemat(path, {"GTcls": {"Segmentation": np.full((2, 2), 0.5)}})
    with pytest.raises(DataError, match=r"a\.mat: .*GTcls\.Segmentation"):
        read_sbd_mask(path)


@pytest.mark.parametrize("images", [1, 3, 5])
def test_what_was_cut_off_can_be_done_again(images: int, voc: Path, tmp_path: Path) -> None:
    done = 0

    def interrupt() -> None:
        nonlocal done
        done += 1
        if done == images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_voc(voc, tmp_path / "out", partial=True, progress=interrupt)
    assert not list((tmp_path / "out").glob("*.txt"))
    for output in (tmp_path / "out", tmp_path / "whole"):
        prepare_voc(voc, output, partial=True)
    for path in (tmp_path / "whole").rglob("[!.]*.*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_a_mask_of_another_size_or_label_is_refused(sbd: Path, voc: Path, tmp_path: Path) -> None:
    prepare_voc(voc, tmp_path / "out", partial=True)
    write_sbd_mask(sbd / "cls" / "2010_22.mat", np.full(SIZE, 21, dtype=np.uint8))
    with pytest.raises(DataError, match=r"2010_22\.mat: 2400 .*label 21\b"):
        prepare_sbd(sbd, tmp_path / "out", partial=True)
    write_sbd_mask(sbd / "cls" / "2010_22.mat", np.zeros((5, 5), dtype=np.uint8))
    with pytest.raises(DataError, match=r"2010_22\.mat: .*5 x 5\b"):
        prepare_sbd(sbd, tmp_path / "out", partial=True)
    assert not (tmp_path / "out" / "trainaug.txt").exists()


def test_a_planted_leak_is_found_by_name_and_by_content(voc: Path, sbd: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare_voc(voc, output, partial=True)
    (sbd / "img" / "2010_21.jpg").write_bytes((voc / "JPEGImages" / "2007_11.jpg").read_bytes())
    with pytest.raises(DataError, match="2010_21 is 2007_11"):
        prepare_sbd(sbd, output, partial=True)
    assert not (output / "trainaug.txt").exists()
    with (
        pytest.raises(DataError, match=r"\b1 val images\b.*: 2007_11"),
        claim_folder(output, "exfuse data prepare") as folder,
    ):
        PreparedTree(folder).check_no_leak(["2007_01", "2007_11"], ["2007_11", "2008_12"])


def test_steps_come_in_their_order_and_into_a_folder_of_their_own(voc: Path, sbd: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt: .*exfuse data prepare voc"):
        prepare_sbd(sbd, tmp_path / "out", partial=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "full"))):
        prepare_voc(voc, tmp_path / "full", partial=True)
    (tmp_path / "full" / "classes.json").write_text('{"classes": []}')  # somebody's own data set
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "full"))):
        prepare_voc(voc, tmp_path / "full", partial=True)
    assert (tmp_path / "full" / "classes.json").read_text() == '{"classes": []}'


def test_coco_adds_the_images_that_show_enough_of_vocs_classes(coco: Path, prepared: Path) -> None:
    counts = prepare_coco(coco, prepared, ("train2017",), True)
    assert counts == {"COCO": 2, "mixed": 7, "val images in mixed": 0}
    mixed = open_dataset(prepared, "mixed")
    names = [entry.name for entry in mixed.entries]
    assert names[-2:] == ["coco_000000000001", "coco_000000000002"]
    cat, sofa, person = (VOC_NAMES.index(name) for name in ("cat", "sofa", "person"))
    expected = np.zeros((80, 100), dtype=np.uint8)
    expected[10:50, 10:50] = cat
    expected[60:70, 5:25] = cat
    expected[30:60, 30:60] = sofa
    expected[30:50, 30:50] = 255
    np.testing.assert_array_equal(mixed[5].mask, expected)
    crowd = np.zeros((80, 100), dtype=np.uint8)
    crowd[40:70, 50:90] = person
    np.testing.assert_array_equal(mixed[6].mask, crowd)


def test_masks_are_drawn_from_every_form_of_a_segmentation() -> None:
    region = np.zeros((30, 20), dtype=bool)
    region[0:7, 0:9] = True
    runs = uncompressed_runs(region)
    packed = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    text = packed | {"counts": packed["counts"].decode()}
    for shape in (runs, text, [rectangle(0, 0, 7, 9)]):
        drawn = draw_semantic_mask([annotation("cat", 0, shape, 63)], {id_of("cat"): 8}, 30, 20)
        np.testing.assert_array_equal(drawn, 8 * region)


def test_regions_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for trial in range(600):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        points = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 20)), 2)) * (width, height)
        points = (points, np.round(points), np.round(2 * points) / 2, np.repeat(points, 2, axis=0))[trial % 4]
        polygons = [points.ravel().tolist(), (points + 3).ravel().tolist()][: 1 + trial % 2]
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        expected = coco_mask.decode(merged).astype(bool)
        np.testing.assert_array_equal(draw_region(polygons, height, width), expected)
        packed = {"size": [height, width], "counts": merged["counts"].decode()}
        np.testing.assert_array_equal(draw_region(packed, height, width), expected)
        np.testing.assert_array_equal(draw_region(uncompressed_runs(expected), height, width), expected)


NUMBERS = [-1, 0, 2**31, 2**63, 10**400, 1e9, -1e9, 1e308, math.nan, math.inf, True, None, "5", [], 60_000, 0.5]
SHAPES = [
    "a", [], {}, [[]] * 2 + [5], [[5] * 6, None], [{}], {"size": [40, 30]}, {"size": [40, 30], "counts": []},
    {"size": [40, 30], "counts": "\xff"}, {"size": [40, 30], "counts": "o" * 99}, {"size": [40, 30], "counts": "\0"},
    {"size": [40, 30], "counts": [1200, 1]}, {"size": [40, 30], "counts": [-1, 1201]}, {"size": [30, 40]},
    {"size": [30, 40], "counts": [1200]},
    {"size": [2**31, 2**31], "counts": [2**62]}, {"size": [60_000, 60_000], "counts": [3_600_000_000]},
    [[0.0, 0.0, 1e9, 0.0, 0.0, 1e9]], [[0, 0, -(10**9), 5, 7, 7]], [[0, 0, 30_000, 30_000] * 100],
]  # fmt: skip


def mutated(shape: Any, rng: random.Random) -> Any:
    """Returns a segmentation with one thing in it replaced, dropped or doubled."""
    shape = json.loads(json.dumps(shape))
    holder = shape
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = rng.choice(keys)
        if not isinstance(holder[key], list | dict) or rng.random() < 0.2:
            break
        holder = holder[key]
    if isinstance(holder[key], str):
        text, at = holder[key], rng.randrange(len(holder[key]))
        holder[key] = text[:at] + chr(rng.randrange(300)) * rng.randrange(3) + text[at + 1 :]
    elif rng.random() < 0.2:
        del holder[key]
    elif rng.random() < 0.2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[key] = rng.choice(NUMBERS)
    return shape


def test_no_segmentation_kills_or_hangs() -> None:
    rng, drawn, messages = random.Random(0), 0, []
    region = np.zeros((40, 30), dtype=bool)
    region[5:20, 3:25] = True
    packed = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    good = [
        uncompressed_runs(region),
        {"size": [40, 30], "counts": packed["counts"].decode()},
        [rectangle(2, 3, 20, 25)],
    ]
    started = time.process_time()
    for shape in [*SHAPES, *(mutated(good[trial % 3], rng) for trial in range(600))]:
        try:
            mask = draw_semantic_mask([annotation("cat", 0, shape, 63)], {id_of("cat"): 8}, 40, 30)
        except DataError as error:
            messages.append(str(error))
        else:
            drawn += 1
            assert set(np.unique(mask)) <= {0, 8}
    assert max(map(len, messages)) < 200
    assert drawn < 300  # a coordinate may be another, a number of pixels not
    assert time.process_time() - started < 20


def test_long_boundaries_are_refused_before_they_take_minutes() -> None:
    lines = [annotation("cat", 0, [[0, 0, 20_000, 1, 5, 20_000]] * 20, 63)] * 40
    started = time.process_time()
    with pytest.raises(DataError, match="boundaries"):
        draw_semantic_mask([annotation("cat", 0, [[0, 0, 30_000, 1, 5, 30_000]] * 500, 63)], {id_of("cat"): 8}, 40, 30)
    with pytest.raises(DataError, match="boundaries"):
        draw_semantic_mask(lines, {id_of("cat"): 8}, 40, 30)
    assert time.process_time() - started < 30


def test_many_regions_in_a_large_image_are_refused() -> None:
    with pytest.raises(DataError, match=r"5,000 .*5000 x 5000"):
        draw_semantic_mask([annotation("cat", 0, [rectangle(0, 0, 9, 9)] * 5000, 63)], {id_of("cat"): 8}, 5000, 5000)


@pytest.mark.parametrize(
    ("key", "number", "name", "value"),
    [
        *[("images", 1, "id", value) for value in (1, True, "2", None, 1.0, 2**60)],
        *[("images", 0, side, value) for side in ("height", "width") for value in (0, -5, 60_000, True, 80.0, "80")],
        *[("images", 2, "file_name", value) for value in (None, 3, ["a"])],
        *[("annotations", 1, "id", value) for value in (7, True, "8")],
        *[("annotations", 2, "area", value) for value in (-1, True, math.nan, math.inf, 10**4000, "5")],
        *[("annotations", 3, "segmentation", value) for value in (None, "abc", 5)],
        *[("annotations", 0, "category_id", value) for value in ([1], {}, True)],
        *[("categories", 4, "id", value) for value in (1, None)],
        *[("categories", 4, "name", value) for value in (["a"], None)],
    ],
)
def test_rows_of_coco_are_checked_one_by_one(
    key: str, number: int, name: str, value: object, coco: Path, prepared: Path
) -> None:
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["id"] = 7
    content[key][number][name] = value
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        prepare_coco(coco, prepared, ("train2017",), True)
    assert f"{annotations}: {key}[{number}]" in str(raised.value)
    assert repr(name) in str(raised.value)
    assert len(str(raised.value)) < 200 + len(str(annotations))


@pytest.mark.parametrize("name", ["x\nval_0", "x\rval_0", "x "])
def test_a_name_that_would_be_another_one_in_a_list_is_refused(name: str, coco: Path, prepared: Path) -> None:
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    old, new = coco / "train2017" / content["images"][0]["file_name"], coco / "train2017" / f"{name}.jpg"
    old.rename(new)
    content["images"][0]["file_name"] = new.name
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=re.escape(repr(f"coco_{name}"))):
        prepare_coco(coco, prepared, ("train2017",), True)


@pytest.mark.parametrize(
    "content", ["[" * 10**6, '{"images": ' * 10**5, "1" * 5000, "\xff", '"\\ud800"', "[1e999]", ""]
)
def test_json_that_is_no_coco_is_one_error(content: str, coco: Path, prepared: Path) -> None:
    (coco / "annotations" / "instances_train2017.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"instances_train2017\.json: .*COCO") as raised:
        prepare_coco(coco, prepared, ("train2017",), True)
    assert len(str(raised.value)) < 600


def test_coco_with_a_byte_order_mark_is_read(coco: Path, prepared: Path) -> None:
    annotations = coco / "annotations" / "instances_train2017.json"
    annotations.write_text(annotations.read_text(), encoding="utf-8-sig")
    assert prepare_coco(coco, prepared, ("train2017",), True)["COCO"] == 2


def test_two_images_of_one_name_are_refused(coco: Path, prepared: Path) -> None:
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    content["images"][1]["file_name"] = content["images"][0]["file_name"]
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"'coco_000000000001' .*already"):
        prepare_coco(coco, prepared, ("train2017",), True)


def test_no_annotation_of_sbd_explodes(tmp_path: Path) -> None:
    """Bytes are changed before they are packed, where they mean something, and after."""
    rng, path, read, messages = random.Random(0), tmp_path / "a.mat", 0, []
    expected = label_map(3) % 255
    write_sbd_mask(path, expected)
    plain = path.read_bytes()
    savemat(path, {"before": np.arange(3), "GTcls": {"Segmentation": expected}}, do_compression=True)
    packed = path.read_bytes()
    np.testing.assert_array_equal(read_sbd_mask(path), expected)
    for trial in range(1000):
        content = bytearray(packed if trial % 4 == 0 else plain)
        for _ in range(rng.randint(1, 3)):
            # Mostly among the tags and sizes: they are in front of the mask, and at the end of what is short.
            at = rng.choice([rng.randrange(len(content)), rng.randrange(120, 1000) % len(content)])
            content[at] = rng.choice([0, 1, 255, content[at] ^ (1 << rng.randrange(8))])
        path.write_bytes(content[: rng.randrange(len(content))] if trial % 10 == 0 else content)
        try:
            read += read_sbd_mask(path).ndim == 2
        except DataError as error:
            messages.append(str(error))
    assert all(str(path) in message for message in messages)
    assert read > 100
    assert len(messages) > 100


@pytest.mark.parametrize("kind", ["text without letters", "zeros packed", "large"])
def test_sizes_that_a_file_claims_are_not_believed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    write_sbd_mask(path, label_map(3) % 255)
    header = path.read_bytes()[:128]
    if kind == "text without letters":
        text = (
            struct.pack("<8I", 6, 8, 4, 0, 5, 8, 1, 2**31 - 1) + struct.pack("<II", 1 | 5 << 16, 0) + b"GTcls".ljust(8)
        )
        path.write_bytes(header + struct.pack("<II", 14, len(text)) + text)
    elif kind == "zeros packed":
        packed = zlib.compress(bytes(40 * 2**20))
        path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
    else:
        with path.open("ab") as file:
            file.truncate(2**30)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.mat"):
        read_sbd_mask(path)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8"])
def test_matlab_files_are_read_as_scipy_reads_them(dtype: str, packed: bool, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 100, (5, 7)).astype(dtype)
    fields = {"Boundaries": np.zeros((2, 1), dtype=object), "Segmentation": numbers, "CategoriesPresent": np.arange(3)}
    savemat(tmp_path / "a.mat", {"one": 5, "GTcls": fields, "two": "text"}, do_compression=packed)
    found = read_field((tmp_path / "a.mat").read_bytes(), "GTcls", "Segmentation")
    assert found.dtype == loadmat(tmp_path / "a.mat")["GTcls"]["Segmentation"][0, 0].dtype
    np.testing.assert_array_equal(found, numbers)
    for variable, field, fact in (
        ("GTcls", "Boundaries", "matrix"),
        ("GTcls", "None", "field None"),
        ("GTcls", "Segment", "field Segment"),
        ("one", "a", "struct"),
        ("two", "a", "struct"),
        ("x", "y", "variable x"),
    ):
        with pytest.raises(ValueError, match=fact):
            read_field((tmp_path / "a.mat").read_bytes(), variable, field)


def test_two_objects_of_one_class_may_overlap() -> None:
    shapes = [
        annotation("cat", 0, [rectangle(0, 0, 10, 10)], 100),
        annotation("cat", 0, [rectangle(5, 5, 15, 15)], 100),
    ]
    drawn = draw_semantic_mask(shapes, {id_of("cat"): 8}, 20, 20)
    assert set(np.unique(drawn)) == {0, 8}
    assert (drawn == 8).sum() == 175


def test_coco_that_is_not_whole_is_refused_by_name(coco: Path, prepared: Path) -> None:
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    with pytest.raises(DataError, match=r"instances_val2017\.json: .*No such file"):
        prepare_coco(coco, prepared, ("val2017",), True)
    (coco / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000002\.jpg: .*instances_train2017\.json"):
        prepare_coco(coco, prepared, ("train2017",), True)
    annotations.write_text(json.dumps(content | {"categories": categories()[:5]}))
    with pytest.raises(DataError, match=r"instances_train2017\.json: .*\bairplane\b"):
        prepare_coco(coco, prepared, ("train2017",), True)
    lacking = [{key: value for key, value in row.items() if key != "area"} for row in content["annotations"]]
    annotations.write_text(json.dumps(content | {"annotations": lacking}))
    with pytest.raises(DataError, match=r"annotations\[0\] .*'area'"):
        prepare_coco(coco, prepared, ("train2017",), True)
    for shape in ([], {"size": [80, 100]}, {"size": [3, 3], "counts": [9]}):
        rows = [row | {"segmentation": shape} for row in content["annotations"]]
        annotations.write_text(json.dumps(content | {"annotations": rows}))
        with pytest.raises(DataError, match=r"instances_train2017\.json: image 1: .*segmentations"):
            prepare_coco(coco, prepared, ("train2017",), True)
    for broken in ({}, {"images": {}, "annotations": [], "categories": []}, {**content, "images": [3]}, []):
        annotations.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"instances_train2017\.json: "):
            prepare_coco(coco, prepared, ("train2017",), True)
    assert not (prepared / "mixed.txt").exists()


def test_coco_with_fewer_images_than_were_published_is_refused(coco: Path, prepared: Path) -> None:
    with pytest.raises(DataError, match=r"images in train2017\b.*\b118,287\b"):
        prepare_coco(coco, prepared, ("train2017",), partial=False)
    with pytest.raises(ConfigError, match=r"splits?.*once"):
        prepare_coco(coco, prepared, ("train2017", "train2017"), partial=True)
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(content | {"images": content["images"][1:]}))
    with pytest.raises(DataError, match=r"instances_train2017\.json: .*\bimage 1,"):
        prepare_coco(coco, prepared, ("train2017",), partial=True)
    assert not (prepared / "mixed.txt").exists()


def test_a_folder_that_is_not_vocs_is_refused(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages.*VOC2012"):
        prepare_voc(voc.parent, tmp_path / "out", partial=True)
    rows = [{"id": index, "name": f"own {index}", "color": [index] * 3} for index in range(21)]
    (voc / "classes.json").write_text(json.dumps({"classes": rows}))
    with pytest.raises(DataError, match=r"classes\.json"):
        prepare_voc(voc, tmp_path / "out", partial=True)


def test_polygons_without_an_area_are_passed_over_and_half_points_refused(coco: Path, prepared: Path) -> None:
    shape = rectangle(2, 2, 12, 12)
    rows = [{"category_id": id_of("cat"), "segmentation": polygons} for polygons in ([[1, 2], shape], [[1, 2, 3, 4]])]
    alone = draw_semantic_mask([{"category_id": id_of("cat"), "segmentation": [shape]}], {id_of("cat"): 8}, 20, 20)
    np.testing.assert_array_equal(draw_semantic_mask(rows, {id_of("cat"): 8}, 20, 20), alone)
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    rows = [row | {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]} for row in content["annotations"]]
    annotations.write_text(json.dumps(content | {"annotations": rows}))
    with pytest.raises(DataError, match=r"image 1: .*segmentations"):
        prepare_coco(coco, prepared, ("train2017",), True)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "sub/2010_21"])
def test_s7_names_of_sbd_and_coco_stay_within_their_folders(name: str, sbd: Path, coco: Path, prepared: Path) -> None:
    before = sorted(path for path in prepared.parent.rglob("*") if path.is_file())
    (sbd / "train.txt").write_text(f"{name}\n")
    for folder, suffix in (("img", ".jpg"), ("cls", ".mat")):
        (sbd / folder / "sub").mkdir()
        (sbd / folder / f"sub/2010_21{suffix}").write_bytes((sbd / folder / f"2010_21{suffix}").read_bytes())
    with pytest.raises(DataError, match=re.escape(shown(name))):
        prepare_sbd(sbd, prepared, partial=True)
    assert sorted(path for path in prepared.parent.rglob("*") if path.is_file() and "sub" not in path.parts) == [
        path for path in before if path.name not in ("trainaug.txt", "mixed.txt")
    ]
    with claim_folder(prepared, "exfuse data prepare") as folder:
        folder.write("trainaug.txt", b"2007_01\n")
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    images = [row | {"file_name": f"../{name}.jpg"} for row in content["images"]]
    annotations.write_text(json.dumps(content | {"images": images}))
    with pytest.raises(DataError, match=r"out of .*train2017"):
        prepare_coco(coco, prepared, ("train2017",), True)


def test_lists_made_from_an_earlier_val_split_do_not_stay(voc: Path, sbd: Path, coco: Path, prepared: Path) -> None:
    prepare_coco(coco, prepared, ("train2017",), True)
    assert (prepared / "mixed.txt").exists()
    prepare_sbd(sbd, prepared, partial=True)
    assert not (prepared / "mixed.txt").exists()
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_11\n2008_12\n2007_02\n")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_01\n")
    prepare_voc(voc, prepared, partial=True)
    assert not (prepared / "trainaug.txt").exists()


def test_an_image_of_another_size_than_its_annotations_say_is_refused(coco: Path, prepared: Path) -> None:
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["height"] += 1
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"000000000001\.jpg: .*100 x 81\b.*instances_train2017\.json"):
        prepare_coco(coco, prepared, ("train2017",), True)


def test_a_val_image_that_hides_in_coco_is_found(coco: Path, prepared: Path, voc: Path) -> None:
    val = (voc / "JPEGImages" / "2008_12.jpg").read_bytes()
    (coco / "train2017" / "000000000001.jpg").write_bytes(val)
    annotations = coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    content["images"][0] |= dict(zip(("height", "width"), image_size(voc / "JPEGImages" / "2008_12.jpg"), strict=True))
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match="coco_000000000001 is 2008_12"):
        prepare_coco(coco, prepared, ("train2017",), True)
