import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data.datasets import open_dataset
from exfuse.data.synthetic import SCENE_CLASSES, make_scene, write_scenes

IGNORE = SCENE_CLASSES.ignore_index
SEEDS = range(12)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_scene_is_a_function_of_its_seed():
    first, again, other = make_scene(5), make_scene(5), make_scene(6)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize(("height", "width"), [(144, 192), (65, 97)])
def test_a_scene_has_the_size_asked_for(height: int, width: int):
    scene = make_scene(0, height, width)
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
    assert (scene.mask.shape, scene.mask.dtype) == ((height, width), np.uint8)


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_are_classes_or_ignored(seed: int):
    labels = set(np.unique(make_scene(seed).mask))
    assert labels <= {*range(len(SCENE_CLASSES)), IGNORE}
    assert {0, IGNORE} < labels


def test_all_classes_occur_in_a_few_scenes():
    found = set().union(*(np.unique(make_scene(seed).mask).tolist() for seed in SEEDS))
    assert found == {*range(len(SCENE_CLASSES)), IGNORE}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_ignored_border_lies_between_any_two_classes(seed: int):
    mask = make_scene(seed).mask
    height, width = mask.shape
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = mask[: height - down, max(0, -right) : width - max(0, right)]
        there = mask[down:, max(0, right) : width + min(0, right)]
        assert here.shape == there.shape
        assert ((here == there) | (here == IGNORE) | (there == IGNORE)).all()


def test_the_ignored_border_is_thin():
    ignored = np.mean([(make_scene(seed).mask == IGNORE).mean() for seed in SEEDS])
    assert 0.01 < ignored < 0.1


def test_colours_say_little_of_the_class():
    # Each class's mean colour varies more between scenes than the classes' overall means differ from each other.
    means: dict[int, list[np.ndarray]] = {label: [] for label in range(1, len(SCENE_CLASSES))}
    for seed in range(40):
        scene = make_scene(seed)
        for label, colors in means.items():
            if (scene.mask == label).any():
                colors.append(scene.image[scene.mask == label].mean(axis=0))
    within = np.mean([np.std(colors, axis=0) for colors in means.values()])
    between = np.std([np.mean(colors, axis=0) for colors in means.values()], axis=0).mean()
    assert within > 2 * between


def test_writing_twice_gives_the_same_bytes(tmp_path: Path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_scenes(tmp_path / name, {"train": 2, "val": 1}, seed)
    first, again, other = (files_of(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {name for name in first if name.startswith(("images/", "masks/"))}


def test_the_pack_has_the_files_of_its_layout(pack: Path):
    train = [f"train_{index:04d}" for index in range(12)]
    val = [f"val_{index:04d}" for index in range(4)]
    assert (pack / "train.txt").read_text().split() == train
    assert (pack / "val.txt").read_text().split() == val
    expected = {f"images/{name}.jpg" for name in train + val} | {f"masks/{name}.png" for name in train + val}
    assert files_of(pack).keys() == expected | {"train.txt", "val.txt", "classes.json"}


def test_no_scene_is_in_two_splits(pack: Path):
    splits = [open_dataset(pack, split) for split in ("train", "val")]
    scenes = [sample.mask.tobytes() for split in splits for sample in split]
    assert len(set(scenes)) == len(scenes) == 16


def test_all_classes_occur_in_the_pack(pack: Path):
    for split in ("train", "val"):
        found = set().union(*(np.unique(sample.mask).tolist() for sample in open_dataset(pack, split)))
        assert found == {*range(len(SCENE_CLASSES)), IGNORE}


def test_written_masks_and_images_are_those_of_the_scenes(tmp_path: Path):
    write_scenes(tmp_path, {"train": 2})
    for index, sample in enumerate(open_dataset(tmp_path, "train")):
        scene = make_scene(index)
        np.testing.assert_array_equal(sample.mask, scene.mask)
        # JPEG at a quality of 92: close, and not the same.
        assert np.abs(sample.image.astype(int) - scene.image).mean() < 8


def test_written_masks_have_the_palette_of_the_classes(pack: Path):
    with Image.open(pack / "masks" / "train_0000.png") as mask:
        assert mask.mode == "P"
        colors = np.array(mask.getpalette()).reshape(-1, 3)
    assert [tuple(color) for color in colors[: len(SCENE_CLASSES)]] == list(SCENE_CLASSES.palette)


def test_written_classes_are_described(pack: Path):
    content = json.loads((pack / "classes.json").read_text())
    assert [row["name"] for row in content["classes"]] == list(SCENE_CLASSES.names)
    assert content["ignore_index"] == IGNORE
    assert len(set(SCENE_CLASSES.palette)) == len(SCENE_CLASSES) == 7
