"""Cityscapes and ADE20K as they are downloaded, and every format_name in trees of links."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data.classes import CITYSCAPES, CITYSCAPES_IDS
from exfuse.data.datasets import open_dataset
from exfuse.data.doctor import open_leniently
from exfuse.data.image_folder import open_image_folder
from exfuse.data.prepare.voc import prepare_voc
from exfuse.data.stats import compute_stats
from exfuse.errors import DataError

SIZE = (24, 32)


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, city, frame in (("train", "aachen", 1), ("train", "zurich", 2), ("val", "munster", 3)):
        name = f"{city}_{frame:06d}_000019"
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        save(image, tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        ids = np.resize(np.arange(34, dtype=np.uint8), SIZE)
        for kind in ("labelIds", "instanceIds", "color"):
            save(ids if kind == "labelIds" else image, tmp_path / "gtFine" / split / city / f"{name}_gtFine_{kind}.png")
    return tmp_path


def test_cityscapes_is_read_as_it_is(cityscapes: Path) -> None:
    train = open_dataset(cityscapes, "train")
    assert [entry.name for entry in train.entries] == ["aachen/aachen_000001_000019", "zurich/zurich_000002_000019"]
    assert train.classes == CITYSCAPES
    assert len(CITYSCAPES.names) == len(CITYSCAPES.palette) == len(CITYSCAPES_IDS) == 19
    ids = np.resize(np.arange(34), SIZE)
    mask = train[0].mask
    for place, stored in enumerate(CITYSCAPES_IDS):
        assert (mask[ids == stored] == place).all()
    assert (mask[~np.isin(ids, CITYSCAPES_IDS)] == 255).all()
    assert CITYSCAPES.names[CITYSCAPES_IDS.index(26)] == "car"
    assert CITYSCAPES.names[CITYSCAPES_IDS.index(33)] == "bicycle"


def test_a_missing_cityscapes_file_or_split_is_named(cityscapes: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit/test: .*no such"):
        open_dataset(cityscapes, "test")
    (cityscapes / "gtFine/val/munster/munster_000003_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"munster_000003_000019_gtFine_labelIds\.png: .*no such"):
        open_dataset(cityscapes, "val")


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), tmp_path / "images" / split / f"{name}.jpg")
        save(np.resize(np.arange(151, dtype=np.uint8), SIZE), tmp_path / "annotations" / split / f"{name}.png")
    rows = [f"{n}\t0.1\t10\t2\tthing {n}, object {n}" for n in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return tmp_path


def test_ade20k_is_read_as_it_is(ade20k: Path) -> None:
    val = open_dataset(ade20k, "validation")
    assert [entry.name for entry in val.entries] == ["ADE_val_00000001"]
    assert len(val.classes) == 150
    assert val.classes.names[0] == "thing 1, object 1"
    stored = np.resize(np.arange(151), SIZE)
    mask = val[0].mask
    assert (mask[stored == 0] == 255).all()
    np.testing.assert_array_equal(mask[stored > 0], stored[stored > 0] - 1)


@pytest.mark.parametrize("format_name", ["cityscapes", "ade20k"])
def test_a_described_folder_stores_the_ids_of_its_description_in_any_layout(
    format_name: str, request: pytest.FixtureRequest
) -> None:
    root, split = request.getfixturevalue(format_name), {"cityscapes": "val", "ade20k": "validation"}[format_name]
    rows = [{"id": index, "name": f"kind {index}", "color": [index, 0, 0]} for index in range(151)]
    (root / "classes.json").write_text(json.dumps({"classes": rows}))
    dataset = open_dataset(root, split)
    assert dataset.classes.names[3] == "kind 3"
    stored = np.resize(np.arange({"cityscapes": 34, "ade20k": 151}[format_name]), SIZE)
    np.testing.assert_array_equal(dataset[0].mask, stored)


@pytest.mark.parametrize("content", [None, "Idx\tRatio\n1\t2\n", "Idx\n" + "1\t2\t3\t4\tname\n" * 149])
def test_ade20k_without_its_table_of_classes_is_refused(content: str | None, ade20k: Path) -> None:
    table = ade20k / "objectInfo150.txt"
    table.unlink()
    if content is not None:
        table.write_text(content)
    with pytest.raises(DataError, match=r"objectInfo150\.txt"):
        open_dataset(ade20k, "training")


# Layout -> split, where an image and its mask lie, and where the split's list.
PLACES = {
    "lists": ("train", "images/{}.png", "masks/{}.png", "train.txt"),
    "folders": ("train", "images/train/{}.png", "masks/train/{}.png", None),
    "voc": ("train", "JPEGImages/{}.png", "SegmentationClass/{}.png", "ImageSets/Segmentation/train.txt"),
    "cityscapes": (
        "train", "leftImg8bit/train/{}_leftImg8bit.png", "gtFine/train/{}_gtFine_labelIds.png", None,
    ),
    "ade20k": ("training", "images/training/{}.png", "annotations/training/{}.png", None),
}  # fmt: skip
NAMES = ["city/a", "city/b", "town/deep/c"]
FORMATS = pytest.mark.parametrize("format_name", PLACES)


def write_plain(root: Path, format_name: str) -> Path:
    rng = np.random.default_rng(0)
    _, image, mask, listed = PLACES[format_name]
    for name in NAMES:
        save(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), root / image.format(name))
        save(rng.integers(0, 3, SIZE, dtype=np.uint8), root / mask.format(name))
    if listed:
        (root / listed).parent.mkdir(parents=True, exist_ok=True)
        (root / listed).write_text("\n".join(NAMES))
    (root / "objectInfo150.txt").write_text("Idx\n" + "".join(f"1\t2\t3\t4\tthing {n}\n" for n in range(150)))
    return root


def link_files(plain: Path, root: Path) -> None:
    """Links files to others that have neither their names nor their suffixes, as DVC and the hub's cache do."""
    store = root.with_name("store")
    store.mkdir()
    for number, path in enumerate(path for path in plain.rglob("*") if path.is_file()):
        shutil.copy(path, store / f"{number}")
        place = root / path.relative_to(plain)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path(os.path.relpath(store / f"{number}", place.parent)))


def link_outer_folders(plain: Path, root: Path) -> None:
    root.mkdir()
    for path in plain.iterdir():
        (root / path.name).symlink_to(path)


def link_inner_folders(plain: Path, root: Path) -> None:
    """Links each folder that holds no other folder."""
    for path in plain.rglob("*"):
        place = root / path.relative_to(plain)
        if path.is_file() and not place.parent.is_symlink():
            inner = path.parent != plain and not any(child.is_dir() for child in path.parent.iterdir())
            (place.parent.parent if inner else place.parent).mkdir(parents=True, exist_ok=True)
            if inner:
                place.parent.symlink_to(path.parent)
            else:
                place.symlink_to(path)


def link_root(plain: Path, root: Path) -> None:
    root.symlink_to(plain)


def add_cycles(plain: Path, root: Path) -> None:
    shutil.copytree(plain, root)
    for folder in [path for path in (root, *root.rglob("*")) if path.is_dir()]:
        (folder / "up").symlink_to(root)
        (folder / "here").symlink_to(folder)


LINKED = (link_files, link_outer_folders, link_inner_folders, link_root, add_cycles)


@FORMATS
@pytest.mark.parametrize("link", LINKED, ids=lambda link: link.__name__)
def test_a_tree_of_links_is_the_data_set_it_leads_to(
    link: Callable[[Path, Path], None], format_name: str, tmp_path: Path
) -> None:
    split = PLACES[format_name][0]
    plain = write_plain(tmp_path / "plain", format_name)
    link(plain, tmp_path / "linked")
    assert len(open_dataset(plain, split)) == len(NAMES)
    before, after = (compute_stats(open_dataset(root, split)) for root in (plain, tmp_path / "linked"))
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("format_name", "part"),
    # Of lists, a folder that no line names is not looked into.
    [
        (format_name, part)
        for format_name in PLACES
        for part in ("image", "mask", "folder")
        if part != "folder" or not PLACES[format_name][3]
    ],
)
def test_broken_links_are_named(part: str, format_name: str, tmp_path: Path) -> None:
    root = write_plain(tmp_path, format_name)
    split, image, mask, _ = PLACES[format_name]
    if part == "folder":
        broken = (root / image.format("more")).parent / "more"
    else:
        broken = root / {"image": image, "mask": mask}[part].format(NAMES[1])
        broken.unlink()
    broken.symlink_to("nowhere")
    with pytest.raises(DataError, match="link") as raised:
        open_dataset(root, split)
    assert str(broken) in str(raised.value)
    dataset, issues = open_leniently(root, split)
    assert [str(broken) in issue.message for issue in issues] == [True]
    assert len(dataset) == len(NAMES) - (part != "folder")


@FORMATS
def test_a_folder_in_place_of_a_file_and_the_reverse_are_named(format_name: str, tmp_path: Path) -> None:
    root = write_plain(tmp_path, format_name)
    split, image, _, listed = PLACES[format_name]
    place = root / (listed or image.format("x"))
    if listed:
        place.unlink()
        place.mkdir()
    else:
        place = place.parent
        shutil.rmtree(place)
        place.touch()
    with pytest.raises(DataError):
        open_dataset(root, split)


@FORMATS
def test_masks_that_are_not_where_they_should_be_are_named_once(format_name: str, tmp_path: Path) -> None:
    split, _, mask, _ = PLACES[format_name]
    root = write_plain(tmp_path, format_name)
    path = root / mask.format(NAMES[1])
    path.rename(path.with_suffix(".PNG"))
    with pytest.raises(DataError) as raised:
        open_dataset(root, split)
    assert str(path) in str(raised.value)
    assert path.with_suffix(".PNG").name in str(raised.value)
    folder = (root / mask.format("x")).parent
    if format_name == "ade20k":
        shutil.rmtree(folder)
        folder.mkdir()
        assert [str(folder) in issue.message for issue in open_leniently(root, split)[1]] == [True] * len(NAMES)
        return
    shutil.rmtree(folder)
    assert [str(folder) in issue.message for issue in open_leniently(root, split)[1]] == [True]


@pytest.mark.parametrize("link", LINKED[:4], ids=lambda link: link.__name__)
def test_classes_of_images_may_be_links(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    for name in ("ant/1", "ant/deep/2", "cat/1"):
        save(np.zeros((*SIZE, 3), dtype=np.uint8), plain / "train" / f"{name}.png")
    link(plain, tmp_path / "linked")
    before, after = (open_image_folder(root, "train") for root in (plain, tmp_path / "linked"))
    assert after.class_names == before.class_names == ("ant", "cat")
    assert [(path.relative_to(tmp_path / "linked"), label) for path, label in after.entries] == [
        (path.relative_to(plain), label) for path, label in before.entries
    ]
    assert len(after) == 3
    broken = plain / "train" / "dog"
    broken.symlink_to("nowhere")
    with pytest.raises(DataError, match="link") as raised:
        open_image_folder(plain, "train")
    assert str(broken) in str(raised.value)


@pytest.mark.parametrize("link", LINKED[:4], ids=lambda link: link.__name__)
def test_voc_is_prepared_from_links(link: Callable[[Path, Path], None], voc: Path, tmp_path: Path) -> None:
    link(voc, tmp_path / "linked")
    for name, source in (("a", voc), ("b", tmp_path / "linked")):
        prepare_voc(source, tmp_path / name, partial=True)
    made = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("[!.]*")]
    assert len(made) == 2 + 5 + 5 + 3
    for path in made:
        copy = tmp_path / "b" / path
        assert not copy.is_symlink()
        assert copy.is_dir() or copy.read_bytes() == (tmp_path / "a" / path).read_bytes()
