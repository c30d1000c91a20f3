"""R6: SIGTERM in any phase of a run saves the newest finished step, exit code 143; a second signal leaves at once."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from exfuse.cli.app import main
from exfuse.data.datasets import SegmentationDataset
from exfuse.errors import CheckpointError
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.training import checkpoint, segmentation
from exfuse.training.checkpoint import latest_checkpoint
from exfuse.training.log import read_records
from exfuse.training.signals import Interrupted, stop_signals

OPTIONS = (
    "epochs=2", "batch_size=4", "evaluate_every=1", "checkpoint_every=2", "log_every=1", "data.crop_size=[64, 64]",
    "model.decoder_width=8", "model.gcn_kernel=3",
)  # fmt: skip
IMAGES = 12 + 4  # read once before training starts
FILES = 5  # of a checkpoint


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["exfuse", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def signalling(function: Callable[..., Any], at_call: int) -> Callable[..., Any]:
    """Returns the function with a SIGTERM at the beginning of one of its calls, counted from 0."""
    calls = itertools.count()

    def call_and_signal(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at_call:
            signal.raise_signal(signal.SIGTERM)
        return function(*arguments, **options)

    return call_and_signal


# Phase -> where the signal comes, at which call, and the newest finished step then.
PHASES: dict[str, tuple[object, str, int, int]] = {
    "start-up": (segmentation, "compute_stats", 1, 0),
    "data wait": (SegmentationDataset, "__getitem__", IMAGES + 9, 2),
    "step": (torch.nn.utils, "get_total_norm", 3, 4),
    "evaluation": (TorchEngine, "labels", 2, 3),
    "save": (checkpoint, "write_file", 2, 2),
}


@pytest.mark.parametrize("phase", PHASES)
def test_r6_a_signal_in_any_phase_keeps_the_newest_finished_step(
    phase: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, name, at_call, step = PHASES[phase]
    assert stopped_and_resumed(place, name, at_call, pack, tmp_path, monkeypatch, capsys) == step


@pytest.mark.parametrize("under_nohup", [False, True])
def test_r6_a_terminal_that_is_closed_is_a_signal_unless_it_is_ignored(under_nohup: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if under_nohup else signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted) if not under_nohup else nullcontext(), stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if under_nohup else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


# Phase -> where the signal comes, the calls before the first, and the newest finished step of the n-th of ten.
TEN_TIMES: dict[str, tuple[object, str, int, Callable[[int], int]]] = {
    "start-up": (SegmentationDataset, "__getitem__", 0, lambda n: 0),
    "data wait": (SegmentationDataset, "__getitem__", IMAGES, lambda n: n // 4),
    "step": (torch.nn.utils, "get_total_norm", 0, lambda n: n + 1),
    "evaluation": (TorchEngine, "labels", 0, lambda n: 3 * (n // 4 + 1)),
    "save": (checkpoint, "write_file", 0, lambda n: n // FILES + 2),  # after two steps, and with the score of three
}


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("phase", TEN_TIMES)
def test_r6_a_signal_at_ten_places_of_any_phase(
    phase: str, number: int, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place, name, before, step = TEN_TIMES[phase]
    found = stopped_and_resumed(place, name, before + number, pack, tmp_path, monkeypatch, capsys, "epochs=4")
    assert found == step(number)


def stopped_and_resumed(
    place: object, name: str, at_call: int, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], *overrides: str,
) -> int:  # fmt: skip
    """Stops a run by a signal and compares it, resumed, with one that nothing stopped; returns the step of the save."""
    command = ("train", "demo", *OPTIONS, *overrides, f"data.root={pack}", f"output={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, signalling(getattr(place, name), at_call))
        assert call(patch, *command) == 143
    said = capsys.readouterr().err
    latest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    step = 0 if latest is None else int(latest.name.split("_")[1])
    if latest is None:
        assert "before" in said
    else:
        assert re.search(rf"\bstep {step}\b.*--resume", said)
    for output, resume in (("run", ("--resume",)), ("whole", ())):
        monkeypatch.setattr(sys, "argv", ["exfuse", *map(str, command[:-1]), f"output={tmp_path / output}", *resume])
        main_returns()
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        other = load_file(tmp_path / "run" / path.relative_to(tmp_path / "whole"))
        assert all(torch.equal(value, other[key]) for key, value in load_file(path).items())
    return step


def main_returns() -> None:
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


# Where the run hangs when the second signal comes; the first comes there too, or in an evaluation that is given up.
@pytest.mark.parametrize(
    ("first", "hanging", "signalled"),
    [
        (signal.SIGTERM, "exfuse.training.checkpoint.write_file", ""),
        (signal.SIGINT, "exfuse.training.checkpoint.write_file", ""),
        (signal.SIGTERM, "torch.nn.utils.get_total_norm", ""),
        (signal.SIGTERM, "exfuse.training.checkpoint.write_file", "exfuse.evaluation.evaluate.image_counts"),
    ],
)
def test_r6_a_second_signal_leaves_at_once(
    first: signal.Signals, hanging: str, signalled: str, pack: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys, time\n"
        "from pkgutil import resolve_name\n"
        "from exfuse.cli.app import main\n"
        "def put(name, function):\n"
        "    module, _, last = name.rpartition('.')\n"
        "    setattr(resolve_name(module), last, function)\n"
        "def hang(*arguments, **options):\n"
        f"    open({str(tmp_path / 'hanging')!r}, 'w').close()\n"
        "    time.sleep(60)\n"
        "calls = []\n"
        f"counted = resolve_name({signalled or hanging!r})\n"
        "def hang_at_the_next(*arguments):\n"
        "    calls.append(arguments)\n"
        "    if len(calls) <= 4:  # images: the first evaluation, before which the step was saved\n"
        "        return counted(*arguments)\n"
        f"    put({hanging!r}, hang)\n"
        f"    signal.raise_signal({int(first)})\n"
        f"put({signalled or hanging!r}, {'hang_at_the_next' if signalled else 'hang'})\n"
        "main()\n"
    )
    options = [*OPTIONS, "checkpoint_every=1000" if signalled else "checkpoint_every=2", f"data.root={pack}"]
    command = [sys.executable, program, "train", "demo", *options, f"output={tmp_path / 'run'}"]
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "hanging").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if not signalled:
            process.send_signal(first)
        time.sleep(0.3)
        assert process.poll() is None  # it waits for the save, or the step, to end
        process.send_signal(first)
        assert process.wait(timeout=10) == 128 + first
        assert b"Traceback" not in (process.stderr.read() if process.stderr else b"")


@pytest.mark.parametrize(
    "place",
    [
        "exfuse.training.checkpoint.write_file",
        pytest.param("torch.nn.utils.get_total_norm", marks=pytest.mark.nightly),
    ],
)
def test_r6_a_signal_to_a_group_of_processes_with_data_workers_saves_all_the_same(
    place: str, pack: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    module, _, name = place.rpartition(".")
    program.write_text(
        "import sys, time\n"
        "from exfuse.cli.app import main\n"
        f"import {module} as module\n"
        f"plain, calls = module.{name}, [0]\n"
        "def slow(*arguments, **options):\n"
        "    calls[0] += 1\n"
        "    if calls[0] == 2:\n"
        f"        open({str(tmp_path / 'there')!r}, 'w').close()\n"
        "        time.sleep(1.5)\n"
        "    return plain(*arguments, **options)\n"
        f"module.{name} = slow\n"
        "main()\n"
    )
    options = [*OPTIONS, "data.workers=2", f"data.root={pack}", f"output={tmp_path / 'run'}"]
    command = [sys.executable, program, "train", "demo", *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "there").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 143, said
    assert re.search(r"\bstep 2\b.*--resume", said)
    latest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert latest is not None
    assert latest.name == "step_00000002"


def test_r6_under_torchrun_a_signal_saves_with_data_workers_too(pack: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\n"
        "from exfuse.cli.app import main\n"
        "from exfuse.data.datasets import SegmentationDataset\n"
        "plain = SegmentationDataset.__getitem__\n"
        "def slowly(self, index):\n"
        "    time.sleep(0.3)\n"
        "    return plain(self, index)\n"
        "SegmentationDataset.__getitem__ = slowly\n"
        "main()\n"
    )
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", slow]
    command = [*launcher, "train", "demo", *OPTIONS, "epochs=50", "checkpoint_every=1000", "evaluate_every=50"]
    command += ["data.workers=2", f"data.root={pack}", f"output={run}"]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    with subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        said = process.communicate(timeout=25)[1]
    assert process.returncode != 0
    latest = latest_checkpoint(run / "checkpoints")
    assert latest is not None, said
    assert int(latest.name.split("_")[1]) >= 2


@pytest.mark.parametrize(
    "line",
    ["no JSON", '{"kind": "train"}', '{"kind": "nap", "step": 1}', '{"kind": "val", "step": "1"}', "[]", b"\xff"],
)
def test_a_damaged_record_is_named_and_nothing_behind_it_lost(line: str | bytes, tmp_path: Path) -> None:
    good = b'{"kind": "train", "step": 1}\n'
    path = tmp_path / "metrics.jsonl"
    content = good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2\b"):
        read_records(tmp_path)
    assert path.read_bytes() == content
    path.write_bytes(good + good[:-9])
    assert read_records(tmp_path) == [{"kind": "train", "step": 1}]  # the last line was cut off


def test_records_have_neither_gaps_nor_doubles_after_stops(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "demo", *OPTIONS, f"data.root={pack}", f"output={tmp_path / 'run'}", "--resume")
    for at_call in (0, 1, 0):
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.utils, "get_total_norm", signalling(torch.nn.utils.get_total_norm, at_call))
            assert call(patch, *command) == 143
    monkeypatch.setattr(sys, "argv", ["exfuse", *map(str, command)])
    main_returns()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [(record["kind"], record["step"]) for record in map(json.loads, lines)]
    assert records == [*(("train", n) for n in (1, 2, 3)), ("val", 3), *(("train", n) for n in (4, 5, 6)), ("val", 6)]
