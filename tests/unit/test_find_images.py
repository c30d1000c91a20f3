"""Which images the arguments of a command mean, and what their results are called."""

import re
from pathlib import Path

import pytest

from exfuse.data.find_images import find_images
from exfuse.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_named_without_their_suffix(tmp_path: Path):
    touch(tmp_path, "street.jpg", "old.town.PNG")
    paths = [tmp_path / "street.jpg", tmp_path / "old.town.PNG"]
    assert find_images([str(path) for path in paths]) == {"street": paths[0], "old.town": paths[1]}


def test_images_of_a_folder_keep_their_place_in_it(tmp_path: Path):
    touch(tmp_path, "b.jpg", "a.JPG", "berlin/a.png", "berlin/mitte/c.tif", "notes.txt", "berlin/list.json")
    found = find_images([str(tmp_path)])
    assert found == {
        "a": tmp_path / "a.JPG",
        "b": tmp_path / "b.jpg",
        "berlin/a": tmp_path / "berlin/a.png",
        "berlin/mitte/c": tmp_path / "berlin/mitte/c.tif",
    }


@pytest.mark.parametrize("masks", ["masks", "annotations"])
def test_only_the_images_of_a_data_set_are_taken_and_that_is_said(tmp_path: Path, masks: str):
    touch(tmp_path, "images/val/a.jpg", f"{masks}/val/a.png", "preview.png")
    said: list[str] = []
    assert find_images([str(tmp_path)], say=said.append) == {"val/a": tmp_path / "images/val/a.jpg"}
    assert len(said) == 1
    assert str(tmp_path / "images") in said[0]


def test_a_folder_of_photographs_that_has_images_in_it_is_taken_whole(tmp_path: Path):
    touch(tmp_path, "images/a.jpg", "b.jpg", "more/c.jpg")
    assert set(find_images([str(tmp_path)])) == {"images/a", "b", "more/c"}


def test_what_lies_in_the_output_folder_is_left_out_and_counted(tmp_path: Path):
    touch(tmp_path, "a.jpg", "out/masks/a.png", "out/overlays/a.jpg")
    said: list[str] = []
    for argument in (str(tmp_path), str(tmp_path / "**" / "*")):
        assert list(find_images([argument], tmp_path / "out", say=said.append).values()) == [tmp_path / "a.jpg"]
    assert [text.count(" 2 images ") for text in said] == [1, 1]
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for argument in ("out/masks/a.png", "link/masks/a.png", "out"):
        with pytest.raises(DataError) as raised:
            find_images([str(tmp_path / argument)], tmp_path / "out")
        assert str(tmp_path / argument) in str(raised.value)


def test_a_name_that_has_the_result_of_another_image_gets_a_number(tmp_path: Path):
    touch(tmp_path, "one/a.jpg", "two/a.jpg")
    taken = {"a": tmp_path / "one/a.jpg"}
    assert list(find_images([str(tmp_path / "one")], None, taken)) == ["a"]
    assert list(find_images([str(tmp_path / "two")], None, taken)) == ["a_2"]


@pytest.mark.parametrize("name", ["...jpg", ".hidden.jpg", "a..png", "..a.b.jpg", "-rf.jpg", " .jpg", "a\nb.jpg"])
def test_strange_names_leave_a_name_for_the_results(tmp_path: Path, name: str):
    touch(tmp_path, f"in/{name}")
    for argument in (tmp_path / "in", tmp_path / "in" / name):
        assert find_images([str(argument)]) == {name.rpartition(".")[0]: tmp_path / "in" / name}


def test_globs_are_sorted_and_may_be_recursive(tmp_path: Path):
    touch(tmp_path, "b.jpg", "a.jpg", "c.png", "in/d.jpg")
    assert list(find_images([str(tmp_path / "*.jpg")]).items()) == [
        ("a", tmp_path / "a.jpg"),
        ("b", tmp_path / "b.jpg"),
    ]
    assert set(find_images([str(tmp_path / "**" / "*.jpg")])) == {"a", "b", "d"}


def test_a_glob_takes_the_images_alone(tmp_path: Path):
    touch(tmp_path, "a.jpg", "notes.txt", "in/d.jpg")
    assert find_images([str(tmp_path / "*")]) == {"a": tmp_path / "a.jpg"}


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path):
    touch(tmp_path, "a[1].jpg", "a1.jpg")
    assert find_images([str(tmp_path / "a[1].jpg")]) == {"a[1]": tmp_path / "a[1].jpg"}


def test_of_images_with_the_same_name_the_later_ones_get_a_number(tmp_path: Path):
    touch(tmp_path, "one/a.jpg", "one/a.png", "two/a.jpg", "three/a_2.jpg")
    found = find_images([str(tmp_path / name) for name in ("one", "two", "three")])
    assert list(found.items()) == [
        ("a", tmp_path / "one/a.jpg"),
        ("a_2", tmp_path / "one/a.png"),
        ("a_3", tmp_path / "two/a.jpg"),
        ("a_2_2", tmp_path / "three/a_2.jpg"),
    ]


@pytest.mark.parametrize("name", ["gone.jpg", "empty", "*.webp"])
def test_an_argument_that_means_no_image_is_named(tmp_path: Path, name: str):
    touch(tmp_path, "a.jpg", "empty/notes.txt")
    with pytest.raises(DataError) as raised:
        find_images([str(tmp_path / "a.jpg"), str(tmp_path / name)])
    assert re.search(f"^{re.escape(str(tmp_path / name))}: .*no image", str(raised.value))
