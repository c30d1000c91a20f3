"""As a library: training leaves the process as it was, whether it returns or raises."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from exfuse.errors import DataError, OutputError
from exfuse.training import loop
from exfuse.training.log import RunLog
from exfuse.training.signals import Interrupted
from support.process_state import unchanged_process
from support.tiny_run import TINY_PRETRAINING, tiny_config, train_quietly

TESTS = Path(__file__).resolve().parents[1]
WAYS = ("return", "return again", "workers", "thread", "error", "error with workers", "signal", "bad data", "refused")


def train_in_all_ways(pack: Path, folder: Path) -> None:
    """Trains again and again in this process and prints each way that left it as it was."""

    def go(name: str, *overrides: str) -> Callable[[], object]:
        return lambda: train_quietly(tiny_config(pack, folder / name, "epochs=1", *overrides))

    def failing(action: Callable[[], object], error: type[BaseException]) -> Callable[[], object]:
        def fail() -> None:
            with pytest.raises(error):
                action()

        return fail

    def in_a_thread(action: Callable[[], object]) -> Callable[[], object]:
        def start() -> None:
            thread = threading.Thread(target=action)
            thread.start()
            thread.join()

        return start

    def broken(action: Callable[[], object]) -> Callable[[], object]:
        def fail() -> None:
            with mock.patch.object(loop, "take_step", side_effect=ZeroDivisionError):
                action()

        return fail

    def interrupted(action: Callable[[], object]) -> Callable[[], object]:
        def stop() -> None:
            with mock.patch.object(RunLog, "advance", side_effect=lambda *_: signal.raise_signal(signal.SIGTERM)):
                action()

        return stop

    actions = (
        go("return"),
        go("again"),
        go("workers", "data.workers=2"),
        in_a_thread(go("thread")),
        failing(broken(go("error")), ZeroDivisionError),
        failing(broken(go("error2", "data.workers=2")), ZeroDivisionError),
        failing(interrupted(go("signal", "data.workers=2")), Interrupted),
        failing(go("data", "data.val_split=none"), DataError),
        failing(go("return"), OutputError),
    )
    for name, action in zip(WAYS, actions, strict=True):
        with unchanged_process():
            action()
        print(name)


def pretrain_in_all_ways(photos: Path, folder: Path) -> None:
    from rich.console import Console

    from exfuse.training.classification import pretrain
    from exfuse.training.recipes import load_pretraining_config

    for name, workers in (("pretrain", 0), ("pretrain with workers", 2)):
        settings = [*TINY_PRETRAINING, f"data.root={photos}", f"output={folder / name}", f"data.workers={workers}"]
        with unchanged_process():
            pretrain(load_pretraining_config("imagenette_resnet18", settings), False, Console(quiet=True))
        print(name)


def in_a_fresh_process(function: Callable[[Path, Path], None], data: Path, folder: Path) -> list[str]:
    """Returns the lines that a function of this module prints there."""
    places = [str(TESTS), str(TESTS / "integration"), *sys.path]
    code = f"import sys, pathlib, {__name__} as t; t.{function.__name__}(*map(pathlib.Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_training_leaves_the_process_as_it_was(pack: Path, tmp_path: Path) -> None:
    assert in_a_fresh_process(train_in_all_ways, pack, tmp_path) == list(WAYS)


def test_pretraining_leaves_the_process_as_it_was(photos: Path, tmp_path: Path) -> None:
    assert in_a_fresh_process(pretrain_in_all_ways, photos, tmp_path) == ["pretrain", "pretrain with workers"]
