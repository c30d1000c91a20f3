"""The rule of every command that writes: where nothing is, or over what it can prove that it wrote itself."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from exfuse.atomic_io import digest_of, free_name
from exfuse.errors import OutputError
from exfuse.outputs.file import SEAL, check_file, new_file, write_result
from exfuse.outputs.folder import JOURNAL, OutputFolder, check_folder, claim_folder
from exfuse.outputs.place import lies_in

COMMAND = "exfuse predict"


def contents(root: Path) -> dict[str, bytes | str]:
    """Returns every file and link below a folder with what it holds; the journal is left out."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.name != JOURNAL and (path.is_symlink() or path.is_file())
    }


def write_once(folder: Path, *names: str, command: str = COMMAND, content: bytes = b"made") -> None:
    with claim_folder(folder, command) as output:
        for name in names:
            output.write(name, content)


def test_a_folder_that_is_new_or_empty_is_taken_and_its_own_files_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "below", tmp_path / "empty"):
        write_once(folder, "masks/a/b.png", "c.json")
        write_once(folder, "masks/a/b.png", content=b"again")
        assert contents(folder) == {"masks/a/b.png": b"again", "c.json": b"made"}


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_once(tmp_path / "out", "a.png")
        write_result(tmp_path / "a.json", COMMAND, {})
    finally:
        os.umask(before)
    for path in (tmp_path / "out" / "a.png", tmp_path / "a.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("theirs", ["notes.txt", ".hidden", "masks/a.png", "empty/"])
def test_a_folder_with_anything_of_somebody_elses_is_refused(tmp_path: Path, theirs: str) -> None:
    path = tmp_path / "out" / theirs
    path.parent.mkdir(parents=True)
    path.mkdir() if theirs.endswith("/") else path.write_bytes(b"theirs")
    before = contents(tmp_path)
    with pytest.raises(OutputError) as raised:
        write_once(tmp_path / "out", "b.png")
    assert str(tmp_path / "out") in str(raised.value)
    assert contents(tmp_path) == before
    assert not (tmp_path / "out" / JOURNAL).exists()


def test_a_folder_of_another_command_is_refused(tmp_path: Path) -> None:
    write_once(tmp_path / "out", "a.png", command="exfuse compare")
    with pytest.raises(OutputError, match="exfuse compare"):
        write_once(tmp_path / "out", "a.png")
    assert contents(tmp_path / "out") == {"a.png": b"made"}


@pytest.mark.parametrize("journal", [b"\xff\xfe", b"[]\n", b"nonsense\n", b"{"])
def test_a_folder_whose_journal_makes_no_sense_is_refused(tmp_path: Path, journal: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(journal)
    with pytest.raises(OutputError, match=JOURNAL):
        write_once(tmp_path, "a.png")
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]


def test_a_file_that_was_changed_or_added_since_is_somebody_elses(tmp_path: Path) -> None:
    write_once(tmp_path / "out", "masks/a.png", "masks/b.png")
    (tmp_path / "out/masks/a.png").write_bytes(b"corrected by hand")
    (tmp_path / "out/masks/c.png").write_bytes(b"drawn by hand")
    before = contents(tmp_path)
    for name in ("masks/a.png", "masks/c.png"):
        with claim_folder(tmp_path / "out", COMMAND) as output:
            for write in (output.check, output.remove, lambda name: output.write(name, b"made")):
                with pytest.raises(OutputError) as raised:
                    write(name)
                assert str(tmp_path / "out" / name) in str(raised.value)
    assert contents(tmp_path) == before


def test_a_planted_link_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(b"made")  # of the very content that is expected
    write_once(tmp_path / "out", "a.png", "masks/a.png")
    (tmp_path / "out/a.png").unlink()
    (tmp_path / "out/a.png").symlink_to(outside / "a.png")
    (tmp_path / "out/dangling.png").symlink_to(outside / "gone.png")
    (tmp_path / "out/more").symlink_to(outside)
    before = contents(tmp_path)
    with claim_folder(tmp_path / "out", COMMAND) as output:
        for name in ("a.png", "dangling.png", "more/a.png", "more/new.png", "more/b/c.png"):
            with pytest.raises(OutputError):
                output.write(name, b"again")
    assert contents(tmp_path) == before


def test_a_link_in_the_place_of_the_journal_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "theirs").write_bytes(b"")
    (tmp_path / "out" / JOURNAL).symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError):
        write_once(tmp_path / "out", "a.png")
    assert (tmp_path / "theirs").read_bytes() == b""


@pytest.mark.parametrize("kind", ["file", "dangling link", "link to a file", "device"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    (tmp_path / "theirs").write_bytes(b"theirs")
    if kind == "file":
        path.write_bytes(b"theirs")
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.symlink_to(tmp_path / ("theirs" if kind == "link to a file" else "gone"))
    before = contents(tmp_path)
    with pytest.raises(OutputError) as raised:
        write_once(path, "a.png")
    assert str(path) in str(raised.value)
    assert contents(tmp_path) == before


def test_a_link_to_an_empty_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_once(tmp_path / "link", "a.png")
    assert contents(tmp_path / "there") == {"a.png": b"made"}


def test_a_second_process_is_kept_out_unless_the_folder_is_shared(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from exfuse.outputs.folder import claim_folder\n"
        f"with claim_folder(Path({str(tmp_path / 'out')!r}), {COMMAND!r}, shared=sys.argv[1] == 'shared') as output:\n"
        "    output.write('second.png', b'made')"
    )

    def second(how: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=False)

    refused = "another exfuse predict is writing"
    with claim_folder(tmp_path / "out", COMMAND) as output:
        output.write("first.png", b"made")
        assert refused in second("alone").stderr
        assert refused in second("shared").stderr
    with claim_folder(tmp_path / "out", COMMAND, shared=True) as output:
        assert refused in second("alone").stderr
        assert second("shared").returncode == 0
        output.write("second.png", b"again")  # known from the journal
    assert second("alone").returncode == 0
    assert contents(tmp_path / "out") == {"first.png": b"made", "second.png": b"made"}


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_after_a_kill_what_was_written_is_known_and_what_was_half_written_is_gone(tmp_path: Path, cut: int) -> None:
    write_once(tmp_path / "out", "a.png", "masks/b.png")
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"file": "masks/c.png", "sha256": "0"}'[:cut])
    partial = tmp_path / "out" / "masks" / (".exfuse-partial-" + "0" * 16)
    partial.write_bytes(b"half")
    write_once(tmp_path / "out", "a.png", "masks/b.png", "masks/c.png", content=b"again")
    assert set(contents(tmp_path / "out").values()) == {b"again"}
    write_once(tmp_path / "out", "masks/c.png", content=b"once more")  # its line did not run into the one cut off


def test_an_error_leaves_what_was_there_and_no_half_file(tmp_path: Path) -> None:
    write_once(tmp_path / "out", "a.png")

    def write_half(output: OutputFolder) -> None:
        with output.open("a.png") as file:
            file.write(b"half")
            raise RuntimeError

    with claim_folder(tmp_path / "out", COMMAND) as output, pytest.raises(RuntimeError):
        write_half(output)
    assert contents(tmp_path / "out") == {"a.png": b"made"}
    write_once(tmp_path / "out", "a.png", content=b"again")


def test_a_claim_that_comes_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(RuntimeError), claim_folder(tmp_path / name, COMMAND):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


def test_older_files_are_removed_only_if_they_are_as_they_were_written(tmp_path: Path) -> None:
    write_once(tmp_path / "out", "old.jpg", "changed.jpg", "kept.jpg")
    (tmp_path / "out/changed.jpg").write_bytes(b"theirs")
    (tmp_path / "out/00_beach.jpg").write_bytes(b"theirs")
    with claim_folder(tmp_path / "out", COMMAND) as output:
        output.write("kept.jpg", b"new")
        output.remove_older()
    assert contents(tmp_path / "out") == {"changed.jpg": b"theirs", "00_beach.jpg": b"theirs", "kept.jpg": b"new"}


@pytest.mark.parametrize("way", ["../theirs", "absolute", "link/theirs"])
def test_a_journal_that_names_what_is_elsewhere_removes_nothing(way: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    with claim_folder(tmp_path / "out", "exfuse compare") as folder:
        folder.write("a.txt", b"a")
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    name = str(theirs) if way == "absolute" else way
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write(json.dumps({"file": name, "sha256": digest_of(theirs).sha256}) + "\n" + "[" * 100_000 + "\n")
    with claim_folder(tmp_path / "out", "exfuse compare") as folder:
        folder.remove_older()
        assert not (tmp_path / "out" / "a.txt").exists()
        if way != "link/theirs":
            with pytest.raises(OutputError):
                folder.remove(name)
    assert theirs.read_text() == "mine"


def test_linked_files_take_no_space_are_never_written_through_and_can_be_linked_again(tmp_path: Path) -> None:
    source = tmp_path / "photo.jpg"
    source.write_bytes(b"photo")
    for _ in range(2):
        with claim_folder(tmp_path / "out", COMMAND) as output:
            output.link("images/photo.jpg", source)
    assert (tmp_path / "out/images/photo.jpg").samefile(source)
    with claim_folder(tmp_path / "out", COMMAND) as output:
        output.write("images/photo.jpg", b"made")
    assert source.read_bytes() == b"photo"
    with claim_folder(tmp_path / "out", COMMAND) as output:
        output.link("images/photo.jpg", source)
    assert (tmp_path / "out/images/photo.jpg").read_bytes() == b"photo"
    (tmp_path / "out/images/photo.jpg").unlink()
    (tmp_path / "out/images/photo.jpg").write_bytes(b"theirs")
    with claim_folder(tmp_path / "out", COMMAND) as output, pytest.raises(OutputError):
        output.link("images/photo.jpg", source)


def test_pictures_are_written_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    with claim_folder(tmp_path, COMMAND) as output:
        for name, kind in (("a.png", "PNG"), ("b.jpg", "JPEG")):
            output.save(name, Image.new("RGB", (3, 2)))
            with Image.open(tmp_path / name) as picture:
                assert (picture.format, picture.size) == (kind, (3, 2))


@pytest.mark.parametrize("write", ["folder", "file"])
def test_a_place_that_cannot_be_written_to_is_told_at_once(tmp_path: Path, write: str) -> None:
    blocked = Path("/proc/exfuse")  # where not even root can write
    with pytest.raises(OutputError) as raised:
        check_file(blocked / "a.json", COMMAND) if write == "file" else write_once(blocked, "a.png")
    assert str(blocked) in str(raised.value)


@pytest.mark.parametrize("name", ["a" * 252 + ".png", "b" * 256 + "/a.png", "/".join("c" * 200 for _ in range(30))])
def test_a_name_that_the_file_system_cannot_have_is_told_before_anything_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").touch()
    with claim_folder(tmp_path / "out", COMMAND) as output:
        for write in (output.check, lambda name: output.link(name, tmp_path / "source")):
            with pytest.raises(OutputError) as raised:
                write(name)
            assert str(tmp_path / "out" / name) in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_result_may_replace_that_of_the_same_command_only(tmp_path: Path) -> None:
    path = tmp_path / "below" / "scores.json"
    check_file(path, COMMAND)
    assert write_result(path, COMMAND, {"mean_iou": 0.5}) == path
    check_file(path, COMMAND)
    assert write_result(path, COMMAND, {"mean_iou": 0.25}) == path
    content = json.loads(path.read_text())
    assert content["mean_iou"] == 0.25
    with pytest.raises(OutputError):
        check_file(path, "exfuse doctor")
    path.write_text(json.dumps(content | {"mean_iou": 0.9}))  # changed by hand
    with pytest.raises(OutputError):
        check_file(path, COMMAND)


@pytest.mark.parametrize("theirs", [b"", b"{}", b"[]", b'{"written_by": {"command": "exfuse predict"}}', b"\xff" * 9])
def test_a_file_of_somebody_elses_is_refused_and_a_late_one_evaded(tmp_path: Path, theirs: bytes) -> None:
    path = tmp_path / "scores.json"
    check_file(path, COMMAND)
    path.write_bytes(theirs)  # while the result was computed
    with pytest.raises(OutputError):
        check_file(path, COMMAND)
    assert write_result(path, COMMAND, {"a": 1}) == tmp_path / "scores_2.json"
    with new_file(path) as placed:
        placed.file.write(b"archive")
    assert placed.path == tmp_path / "scores_3.json"
    assert placed.path.read_bytes() == b"archive"
    assert path.read_bytes() == theirs
    assert SEAL in json.loads((tmp_path / "scores_2.json").read_text())


@pytest.mark.parametrize("target", ["gone.json", "own.json", "folder"])
def test_a_link_or_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, target: str) -> None:
    write_result(tmp_path / "own.json", COMMAND, {})
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / target)
    before = contents(tmp_path)
    for name in ("link.json", "folder"):
        with pytest.raises(OutputError):
            check_file(tmp_path / name, COMMAND)
    assert contents(tmp_path) == before


def test_a_number_that_is_not_finite_never_gets_into_a_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(tmp_path / "a.json", COMMAND, {"mean_iou": float("nan")})
    assert not list(tmp_path.iterdir())


def test_free_names_and_what_lies_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    (tmp_path / "a_2.json").symlink_to("nowhere")
    assert free_name(tmp_path / "b.json") == tmp_path / "b.json"
    assert free_name(tmp_path / "a.json") == tmp_path / "a_3.json"
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert lies_in(tmp_path / "link" / "a.png", tmp_path / "out")
    assert lies_in(tmp_path / "out" / "a.png", tmp_path / "link")
    assert not lies_in(tmp_path / "outside.png", tmp_path / "out")


def test_an_unclaimed_folder_is_told_from_a_claimed_one(tmp_path: Path) -> None:
    assert not check_folder(tmp_path / "new", COMMAND)
    assert not check_folder(tmp_path, COMMAND)
    write_once(tmp_path, "a.png")
    assert check_folder(tmp_path, COMMAND)
