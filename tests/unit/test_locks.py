"""Locks: who is kept out, for how long, and where the file system or somebody else stands in the way."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from exfuse.atomic_io import file_lock

HOLD = """
import os, sys, time
from pathlib import Path
from exfuse.atomic_io import file_lock
from exfuse.outputs.folder import claim_folder
path = Path(sys.argv[1])
with file_lock(path) if path.suffix == ".lock" else claim_folder(path, "exfuse train"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""
TRY = """
import sys
from pathlib import Path
from exfuse.atomic_io import file_lock
from exfuse.errors import OutputError
from exfuse.outputs.folder import claim_folder
path = Path(sys.argv[1])
try:
    with file_lock(path) if path.suffix == ".lock" else claim_folder(path, "exfuse train") as taken:
        print("free" if taken else "held")
except OutputError:
    print("held")
"""


def seen_by_others(path: Path) -> str:
    return subprocess.run([sys.executable, "-c", TRY, path], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["a.lock", "run"])
def test_a_kill_frees_it_though_a_forked_process_lives_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert seen_by_others(path) == "held"
            process.kill()
            process.wait()
            assert seen_by_others(path) == "free"
            os.kill(child, 0)  # it does live
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_it_keeps_out_threads_and_the_same_thread_and_outlasts_other_openings(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    in_thread: list[bool] = []

    def attempt() -> None:
        with file_lock(path) as taken:
            in_thread.append(taken)

    with file_lock(path) as outer, file_lock(path) as inner:
        assert (outer, inner) == (True, False)
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        path.read_bytes()
        assert seen_by_others(path) == "held"
    assert in_thread == [False]
    with file_lock(path) as taken:
        assert taken


def test_an_error_in_the_block_is_passed_on_and_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with pytest.raises(TimeoutError), file_lock(path):
        raise TimeoutError
    with file_lock(path) as taken:
        assert taken


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"a\.lock"), file_lock(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for wait in (False, True):
        with file_lock(tmp_path / "a.lock", wait) as taken:
            assert taken


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for blocked in (Path("/proc/exfuse/a.lock"), tmp_path / "file" / "a.lock", tmp_path):
        with pytest.raises(OSError), file_lock(blocked, wait=True):  # noqa: PT011 (each system has its own words)
            pass
