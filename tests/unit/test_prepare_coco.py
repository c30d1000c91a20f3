"""COCO as a part of the data set of three stages: its masks, its errors, its leaks."""

import json
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from exfuse.data.classes import VOC_NAMES
from exfuse.data.datasets import open_dataset
from exfuse.data.prepare.coco import draw_semantic_mask, prepare_coco
from exfuse.data.prepare.regions import draw_region
from exfuse.data.prepare.voc import prepare_sbd
from exfuse.data.samples import image_size
from exfuse.errors import ConfigError, DataError
from exfuse.outputs.folder import claim_folder
from support.public_data import (
    annotation,
    categories,
    id_of,
    rectangle,
    uncompressed_runs,
)


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
    with pytest.raises(DataError, match=r"annotations\[0\].*'area'"):
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
    with pytest.raises(DataError, match=re.escape(name)):
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
