"""Text, names and folders as people keep them: encodings, links, names that would lead elsewhere."""

import os
from pathlib import Path

import pytest

from exfuse.data import files
from exfuse.data.files import MAX_LIST, MAX_NAME, MAX_PART, image_files, inside, read_names, read_text
from exfuse.errors import DataError, shown


def names_in(path: Path) -> list[str]:
    return [name for _, name in read_names(path)]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_any_editor_is_the_same(encoding: str, end: str, tmp_path: Path) -> None:
    lines = ["a", "", "  b \t", "\u00fc c", "# d", "e\u2028f\x0bg"]
    (tmp_path / "list.txt").write_bytes(end.join(lines).encode(encoding))
    found = [(1, "a"), (3, "b"), (4, "\u00fc c"), (5, "# d"), (6, "e\u2028f\x0bg")]
    assert list(read_names(tmp_path / "list.txt")) == found


def test_names_that_are_not_utf_8_are_spelt_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9\n")
    assert names_in(tmp_path / "list.txt") == [os.fsdecode(b"caf\xe9")]
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "list.txt")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "large", "long line"])
def test_what_is_no_list_is_named_in_few_words(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(MAX_LIST + 1)
    elif kind == "long line":
        path.write_text("a\n" + "b" * (MAX_NAME + 1))
    with pytest.raises(DataError) as raised:
        names_in(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 200 + len(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "", "..", "../a", "a/../b", "a/..", "/a", "//a/b", "\\a", "..\\a", "a\\..\\b", "C:a", "c:/a", "C:\\a",
        "\\\\a\\b", "\\\\?\\C:\\a", "a\0b", "a" * (MAX_PART + 1), "a/" * MAX_NAME, "\ud800",
        "\u00fc" * (MAX_PART // 2 + 1),
    ],
)  # fmt: skip
def test_names_that_lead_out_or_are_none_are_refused_by_their_text(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        inside(tmp_path, name)
    assert shown(name) in str(raised.value)
    assert len(str(raised.value)) < 150 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["a", "a/b.c", ".", "./a", "..a", "a..", "...", ".a", "a b", "a/..b/c", "caf\udce9"])
def test_other_names_are_taken(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_image_files_are_found_behind_every_link(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    touch(
        root / "b.JPG", root / "sub/c.png", root / "sub-d/e.png", root / "sub" / "notes.txt", root / "x.jpg" / "f.tif"
    )
    touch(store / "g.bmp", store / "deep/h.webp", store / "blob")
    (root / "file.png").symlink_to(store / "blob")
    (root / "folder").symlink_to(store)
    (root / "sub" / "nested").symlink_to(Path("../../store/deep"))
    (root / "sub" / "up").symlink_to(root)
    (store / "self").symlink_to(store)
    (root / "gone.png").symlink_to(tmp_path / "nothing")
    (root / "gone").symlink_to(tmp_path / "nothing")
    (root / "loop").symlink_to(root / "loop")
    found = [path.relative_to(root).as_posix() for path in image_files(root)]
    assert found == [
        "b.JPG", "file.png", "folder/deep/h.webp", "folder/g.bmp", "gone", "gone.png", "loop", "sub/c.png",
        "sub/nested/h.webp", "sub-d/e.png", "x.jpg/f.tif",
    ]  # fmt: skip
    (tmp_path / "linked").symlink_to(root)
    assert [path.relative_to(tmp_path / "linked").as_posix() for path in image_files(tmp_path / "linked")] == found


def test_links_that_multiply_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 300)
    for level in range(12):  # 4,096 ways to the last
        (tmp_path / f"{level}").mkdir()
        for side in "ab":
            (tmp_path / f"{level}" / side).symlink_to(tmp_path / f"{level + 1}")
    (tmp_path / "12").mkdir()
    with pytest.raises(DataError, match="300"):
        image_files(tmp_path / "0")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "sub" / "a.png")
    scan = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError) as raised:
        image_files(tmp_path)
    assert str(tmp_path / "sub") in str(raised.value)
