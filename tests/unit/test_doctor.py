"""S5: every kind of wrong mask is found and named, and none that is right."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.cli.doctor import doctor_command
from exfuse.data.datasets import open_dataset
from exfuse.data.doctor import find_shared, open_leniently, validate
from exfuse.errors import ConfigError


@pytest.fixture
def data(pack: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack, tmp_path / "data"))


def mask_of(data: Path, name: str) -> np.ndarray:
    with Image.open(data / "masks" / f"{name}.png") as mask:
        return np.array(mask)


def with_label(data: Path, name: str) -> None:
    mask = mask_of(data, name)
    mask[5, 7:10] = 99
    Image.fromarray(mask).save(data / "masks" / f"{name}.png")


def as_rgb(data: Path, name: str) -> None:
    Image.fromarray(mask_of(data, name)).convert("RGB").save(data / "masks" / f"{name}.png")


def as_16_bit(data: Path, name: str) -> None:
    Image.fromarray(mask_of(data, name).astype(np.uint16)).save(data / "masks" / f"{name}.png")


def as_smaller(data: Path, name: str) -> None:
    Image.fromarray(mask_of(data, name)[:-4]).save(data / "masks" / f"{name}.png")


def truncated(data: Path, name: str) -> None:
    path = data / "masks" / f"{name}.png"
    path.write_bytes(path.read_bytes()[:-200])


def rotated_by_exif(data: Path, name: str) -> None:
    path = data / "images" / f"{name}.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        pixels = image.copy()
    pixels.save(path, exif=exif)


def broken_image(data: Path, name: str) -> None:
    (data / "images" / f"{name}.jpg").write_bytes(b"no image")


def all_ignored(data: Path, name: str) -> None:
    Image.fromarray(np.full_like(mask_of(data, name), 255)).save(data / "masks" / f"{name}.png")


DAMAGES: dict[str, tuple[Callable[[Path, str], None], list[tuple[str, str, str]]]] = {
    "label": (with_label, [("error", "label", "masks/train_0003.png")]),
    "RGB": (as_rgb, [("error", "mask", "masks/train_0003.png")]),
    "16 bit": (as_16_bit, [("error", "mask", "masks/train_0003.png")]),
    "size": (as_smaller, [("error", "size", "masks/train_0003.png")]),
    "truncated": (truncated, [("error", "mask", "masks/train_0003.png")]),
    "EXIF": (
        rotated_by_exif,
        [("warning", "orientation", "images/train_0003.jpg"), ("error", "size", "masks/train_0003.png")],
    ),
    "broken image": (broken_image, [("error", "image", "images/train_0003.jpg")]),
    "all ignored": (all_ignored, [("warning", "all ignored", "masks/train_0003.png")]),
}


def issues_of(data: Path) -> list[tuple[str, str, str]]:
    result = validate(open_dataset(data, "train"))
    return [(f.severity, f.kind, str(Path(f.file).relative_to(data))) for f in result.issues if f.file]


def test_a_clean_set_has_nothing_wrong(data: Path) -> None:
    seen: list[int] = []
    result = validate(open_dataset(data, "train"), progress=lambda: seen.append(1))
    assert result.errors == 0
    assert [issue for issue in result.issues if issue.file] == []
    assert (result.images, len(seen)) == (12, 12)
    masks = [mask_of(data, f"train_{index:04d}") for index in range(12)]
    assert sum(result.pixels.values()) + result.ignored == sum(mask.size for mask in masks)
    assert next(iter(result.pixels.values())) == sum(int((mask == 0).sum()) for mask in masks)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found_with_its_file(damage: str, data: Path) -> None:
    spoil, expected = DAMAGES[damage]
    spoil(data, "train_0003")
    assert issues_of(data) == expected


def test_all_damages_of_a_set_are_found_at_once(data: Path) -> None:
    for index, (spoil, _) in enumerate(DAMAGES.values()):
        spoil(data, f"train_{index:04d}")
    kinds = [kind for _, kind, _ in issues_of(data)]
    assert sorted(kinds) == sorted(kind for _, expected in DAMAGES.values() for _, kind, _ in expected)


def test_a_wrong_label_comes_with_its_count_and_first_place(data: Path) -> None:
    with_label(data, "train_0003")
    (issue,) = (f for f in validate(open_dataset(data, "train")).issues if f.kind == "label")
    assert (issue.pixels, issue.first) == (3, (5, 7))
    assert re.search(r"\b3 .* 99, .*row 5, column 7\b", issue.message)


@pytest.mark.parametrize(
    ("damage", "pixels", "first"),
    [
        ("RGB", 144 * 192, (0, 0)),
        ("16 bit", 144 * 192, (0, 0)),
        ("truncated", 144 * 192, (0, 0)),
        ("size", 4 * 192, (140, 0)),
        ("EXIF", 2 * (192 - 144) * 144, (0, 144)),
        ("broken image", 0, None),
        ("all ignored", 144 * 192, (0, 0)),
    ],
)
def test_other_damages_come_with_their_count_and_first_place(
    damage: str, pixels: int, first: tuple[int, int] | None, data: Path
) -> None:
    spoil, expected = DAMAGES[damage]
    spoil(data, "train_0003")
    (issue,) = (f for f in validate(open_dataset(data, "train")).issues if f.kind == expected[-1][1])
    assert (issue.pixels, issue.first) == (pixels, first)


def test_classes_that_hardly_occur_are_named(data: Path) -> None:
    for path in (data / "masks").glob("train_*.png"):
        with Image.open(path) as image:
            mask = np.array(image)
        mask[mask == 6] = 0
        mask[mask == 5] = 0
        mask[0, 0] = 5 if path.name == "train_0000.png" else mask[0, 0]
        Image.fromarray(mask).save(path)
    issues = [(f.kind, f.message) for f in validate(open_dataset(data, "train")).issues]
    assert ("absent class", "train: no pixel has the class 'rod'") in issues
    assert any(kind == "rare class" and "'ring'" in message for kind, message in issues)


def test_the_json_holds_everything(data: Path) -> None:
    with_label(data, "train_0003")
    content = json.loads(json.dumps(validate(open_dataset(data, "train")).to_json()))
    assert content["split"] == "train"
    assert any(issue["first"] == [5, 7] for issue in content["issues"])


def test_all_missing_files_are_found_and_the_rest_is_examined(data: Path) -> None:
    (data / "images" / "train_0003.jpg").unlink()
    (data / "masks" / "train_0005.png").unlink()
    with_label(data, "train_0007")
    dataset, missing = open_leniently(data, "train")
    result = validate(dataset, missing)
    assert [(issue.kind, Path(issue.file).name) for issue in result.issues if issue.severity == "error"] == [
        ("listing", "train.txt"),
        ("listing", "train_0005.png"),
        ("label", "train_0007.png"),
    ]
    assert re.search("line 4: .*'train_0003'", result.issues[0].message)
    assert result.images == 10


def test_an_image_in_two_splits_is_found(data: Path) -> None:
    with (data / "val.txt").open("a") as file:
        file.write("train_0003\n")
    splits = [open_leniently(data, split)[0] for split in ("train", "val")]
    of_train, of_val = find_shared(splits)
    assert of_train == ()
    assert [(f.severity, f.kind, Path(f.file).name) for f in of_val] == [("warning", "shared", "train_0003.jpg")]
    assert "'train'" in of_val[0].message


def test_an_image_named_twice_is_found_and_counted_once(data: Path) -> None:
    with (data / "train.txt").open("a") as file:
        file.write("train_0003\n")
    dataset, found = open_leniently(data, "train")
    assert len(dataset) == 12
    assert [(issue.kind, issue.message.count("train_0003")) for issue in found] == [("listing", 3)]


def test_a_broken_mask_of_unnamed_classes_is_found_once(data: Path) -> None:
    (data / "classes.json").unlink()
    truncated(data, "train_0002")
    result = validate(*open_leniently(data, "train"))
    assert [(f.kind, Path(f.file).name) for f in result.issues if f.severity == "error"] == [("mask", "train_0002.png")]


def test_a_set_without_any_mask_is_examined_all_the_same(data: Path) -> None:
    (data / "masks").rename(data / "labels")
    dataset, missing = open_leniently(data, "train")
    result = validate(dataset, missing)
    assert (result.images, result.errors) == (0, 1)
    assert f"{data / 'masks'}: " in result.issues[0].message


@pytest.mark.parametrize("splits", ["train,train", "train, ,val", "", "x," * 10_000])
def test_splits_are_named_once(splits: str, pack: Path) -> None:
    with pytest.raises(ConfigError, match="--splits") as raised:
        doctor_command(pack, splits)
    assert len(str(raised.value)) < 400
