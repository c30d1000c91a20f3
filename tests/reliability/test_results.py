"""Folders of results under kills and full disks: every file is the old one, the new one or none, and known as ours."""

import errno
import os
import resource
from pathlib import Path

import pytest

from exfuse.errors import OutputError
from exfuse.outputs.file import check_file, write_result
from exfuse.outputs.folder import JOURNAL, claim_folder
from support.faults import Operations, in_a_child, kill_myself

COMMAND = "exfuse predict"
NAMES = ("masks/a.png", "masks/deep/b.png", "fractions.json")


def write(folder: Path, content: bytes) -> None:
    with claim_folder(folder, COMMAND) as output:
        for name in NAMES:
            output.write(name, content * 1000)


def count_operations(folder: Path) -> int:
    write(folder, b"old")
    with Operations(folder).installed() as operations:
        write(folder, b"new")
    return operations.count


def assert_whole_and_ours(folder: Path, root: Path) -> None:
    """Checks that nothing is half there, and that the same command can go on."""
    for name in NAMES:
        assert (folder / name).read_bytes() in (b"old" * 1000, b"new" * 1000)
    write(folder, b"last")
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {Path(name).name for name in NAMES} | {
        JOURNAL
    }
    assert all((folder / name).read_bytes() == b"last" * 1000 for name in NAMES)
    assert list(root.iterdir()) == [folder]


def test_a_kill_at_any_operation_leaves_whole_files_that_may_be_replaced(tmp_path: Path) -> None:
    total = count_operations(tmp_path / "counted" / "out")
    assert total >= 4 * len(NAMES)
    for place in range(1, total + 1):
        folder = tmp_path / str(place) / "out"
        write(folder, b"old")

        def write_and_die(folder: Path = folder, place: int = place) -> None:
            with Operations(folder, place, kill_myself).installed():
                write(folder, b"new")

        assert in_a_child(write_and_die) == -9
        assert_whole_and_ours(folder, folder.parent)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_at_any_operation_names_the_place_and_leaves_whole_files(code: int, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    refused = 0
    for place in range(1, count_operations(tmp_path / "counted" / "out") + 1):
        folder = tmp_path / str(place) / "out"
        write(folder, b"old")
        said = None
        try:
            with Operations(folder, place, fail).installed():
                write(folder, b"new")
        except OutputError as error:
            refused += 1
            said = str(error)
        assert said is None or (str(folder) in said and os.strerror(code) in said)
        assert_whole_and_ours(folder, folder.parent)
    assert refused >= 3 * len(NAMES)


def test_a_full_disk_leaves_no_half_file_and_no_half_result(tmp_path: Path) -> None:
    write(tmp_path / "out", b"old")
    write_result(tmp_path / "scores.json", COMMAND, {"old": 1})
    before = (tmp_path / "scores.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = (tmp_path / "out" / JOURNAL).stat().st_size
    for limit in range(journal + 200, 3000, 300):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError, match=r"masks/a\.png"):
                write(tmp_path / "out", b"new")
            check_file(tmp_path / "scores.json", COMMAND)
            with pytest.raises(OutputError, match=r"scores\.json"):
                write_result(tmp_path / "scores.json", COMMAND, {"new": "n" * 4000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "scores.json").read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 2
    write(tmp_path / "out", b"last")
