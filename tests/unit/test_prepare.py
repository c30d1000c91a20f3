"""VOC 2012 and SBD as they are downloaded, made a folder that can be trained on."""

import json
import random
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from exfuse.data.classes import voc_palette
from exfuse.data.datasets import open_dataset
from exfuse.data.prepare.coco import prepare_coco
from exfuse.data.prepare.matlab import read_field
from exfuse.data.prepare.tree import PreparedTree
from exfuse.data.prepare.voc import prepare_sbd, prepare_voc, read_sbd_mask
from exfuse.errors import DataError, OutputError
from exfuse.outputs.folder import claim_folder
from support.public_data import (
    SIZE,
    label_map,
    write_sbd_mask,
)


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


def test_a_folder_that_is_not_vocs_is_refused(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages.*VOC2012"):
        prepare_voc(voc.parent, tmp_path / "out", partial=True)
    rows = [{"id": index, "name": f"own {index}", "color": [index] * 3} for index in range(21)]
    (voc / "classes.json").write_text(json.dumps({"classes": rows}))
    with pytest.raises(DataError, match=r"classes\.json"):
        prepare_voc(voc, tmp_path / "out", partial=True)


def test_lists_made_from_an_earlier_val_split_do_not_stay(voc: Path, sbd: Path, coco: Path, prepared: Path) -> None:
    prepare_coco(coco, prepared, ("train2017",), True)
    assert (prepared / "mixed.txt").exists()
    prepare_sbd(sbd, prepared, partial=True)
    assert not (prepared / "mixed.txt").exists()
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_11\n2008_12\n2007_02\n")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_01\n")
    prepare_voc(voc, prepared, partial=True)
    assert not (prepared / "trainaug.txt").exists()
