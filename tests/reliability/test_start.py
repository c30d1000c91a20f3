"""The first moments of a command, before anything of ours can go wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exfuse.cli import start

# A library whose import takes long, and which makes an error of its own of whatever interrupts it.
SLOW = """
import time
open({there!r}, "w").close()
try:
    time.sleep(60)
except BaseException:
    raise ImportError("failed to import") from None
"""


@pytest.mark.parametrize("library", ["typer", "torch"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_with_one_line(tmp_path: Path, library: str, number: int) -> None:
    there = tmp_path / "there"
    (tmp_path / f"{library}.py").write_text(SLOW.format(there=str(there)))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(start.__file__).parents[2]}"}
    with subprocess.Popen(
        [sys.executable, "-m", "exfuse", "train", "demo"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while not there.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_a_current_folder_that_was_removed_is_one_error(tmp_path: Path) -> None:
    program = (
        f"import os, sys; os.mkdir({str(tmp_path / 'gone')!r}); os.chdir({str(tmp_path / 'gone')!r})\n"
        f"os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, '-m', 'exfuse', 'models'])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(start.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the current folder was removed")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
