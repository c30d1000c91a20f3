"""R9: a process of a run of several dies; and several that were not started alike."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from exfuse.distributed import DistContext
from exfuse.errors import ConfigError
from exfuse.training import run
from exfuse.training.recipes import load_config

VERSIONS = {"exfuse", "torch", "numpy", "python"}
DYING = Path(__file__).with_name("dying_rank.py")
DIFFERING = Path(__file__).with_name("differing_ranks.py")
OPTIONS = (
    "train", "demo", "epochs=4", "batch_size=4", "evaluate_every=2", "checkpoint_every=2", "log_every=1",
    "data.crop_size=[64, 64]", "model.name=exfuse_tiny", "model.decoder_width=8", "model.gcn_kernel=3", "--resume",
)  # fmt: skip


Death = tuple[int, str, int]  # rank, place and number, see dying_rank.py
DEATHS: tuple[Death, ...] = (
    (1, "batch", 0), (1, "batch", 5), (0, "batch", 7), (1, "backward", 5), (0, "backward", 8), (0, "save", 3),
)  # fmt: skip
NEVER: Death = (0, "batch", 10**6)


def run_two(pack: Path, folder: Path, death: Death, restarts: int) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    command = [DYING, folder / "died", *death, *OPTIONS, f"data.root={pack}", f"output={folder / 'run'}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    folder.mkdir()
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def records_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds_per_step", "waiting")} for line in lines]


@pytest.mark.nightly
@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_r9_a_dead_rank_ends_the_run_within_seconds(death: Death, pack: Path, tmp_path: Path) -> None:
    done = run_two(pack, tmp_path / "two", death, restarts=0)
    seconds = time.time() - (tmp_path / "two" / "died").stat().st_mtime
    assert done.returncode != 0
    assert "another process" in done.stderr
    assert seconds < 15
    left = subprocess.run(["pgrep", "-f", str(DYING)], capture_output=True, text=True, check=False).stdout.split()
    assert left == []


@pytest.mark.nightly
@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_r9_with_restarts_the_run_ends_as_one_that_nothing_disturbed(death: Death, pack: Path, tmp_path: Path) -> None:
    for name, dies in (("whole", NEVER), ("restarted", death)):
        done = run_two(pack, tmp_path / name, dies, restarts=1)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / name / "died").exists() == (name == "restarted")
    whole, restarted = (tmp_path / name / "run" for name in ("whole", "restarted"))
    assert records_of(restarted) == records_of(whole)
    # `latest` holds the hash of the manifest, and that the hashes of all files of the checkpoint.
    assert (restarted / "checkpoints" / "latest").read_text() == (whole / "checkpoints" / "latest").read_text()
    for folder in ("model", "model_last"):
        for path in sorted((whole / folder).glob("*.safetensors")):
            expected, found = load_file(path), load_file(restarted / folder / path.name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), path


def start_two(*commands: list[str]) -> list[tuple[int, str]]:
    """Returns exit code and standard error of the processes of one group, each with a command of its own.

    Started without torchrun, which ends the other one when one fails, and whose own message is a traceback.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ
            | shared
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, errors) for process, (_, errors) in zip(processes, ended, strict=True)]


def other_pixel(data: Path) -> None:
    path = data / "masks" / "train_0000.png"
    with Image.open(path) as image:
        labels = np.array(image)
    labels[5, 5] = (labels[5, 5] + 1) % 3
    Image.fromarray(labels).save(path)


def other_sizes(data: Path) -> None:
    for path in (data / "images" / "train_0001.jpg", data / "masks" / "train_0001.png"):
        with Image.open(path) as image:
            image.crop((0, 0, 160, 120)).save(path)


def other_list(data: Path) -> None:
    (data / "val.txt").write_text("val_0000\nval_0001\nval_0003\n")


def same(data: Path) -> None:
    pass


class Difference(NamedTuple):
    """What the second process has otherwise, and what both say of it."""

    settings: tuple[str, ...]
    resume: bool
    change: Callable[[Path], None]
    error: str
    said: tuple[str, ...]


DIFFERENCES = (
    Difference(("optimizer.learning_rate=0.5",), False, same, "ConfigError",
               ("rank 1 has optimizer.learning_rate 0.5 and rank 0 0.006",)),
    Difference(("seed=3", "data.cache=true", "max_skipped_steps=2"), False, same, "ConfigError",
               ("rank 1 has seed 3", "rank 1 has data.cache True", "rank 1 has max_skipped_steps 2")),
    Difference(("batch_size=8",), False, same, "ConfigError", ("rank 1 has batch_size 8 and rank 0 4",)),
    Difference((), True, same, "ConfigError", ("rank 1 has --resume True and rank 0 False",)),
    Difference((), False, other_pixel, "DataError", ("rank 1 has training fingerprint",)),
    Difference((), False, other_sizes, "DataError", ("rank 1 has training fingerprint",)),
    Difference((), False, other_list, "DataError",
               ("rank 1 has validation fingerprint", "rank 1 has validation images 3 and rank 0 4")),
)  # fmt: skip


def test_processes_that_differ_all_say_in_what_before_the_first_step(pack: Path, tmp_path: Path) -> None:
    runs: tuple[list[Any], list[Any]] = ([], [])
    for number, difference in enumerate(DIFFERENCES):
        own = Path(shutil.copytree(pack, tmp_path / f"data{number}"))
        difference.change(own)
        common = [*OPTIONS[2:-1], f"output={tmp_path / 'run'}"]
        runs[0].append(([*common, f"data.root={pack}"], False))
        runs[1].append(([*common, *difference.settings, f"data.root={own}"], difference.resume))
    for rank, of_rank in enumerate(runs):
        (tmp_path / f"{rank}.json").write_text(json.dumps(of_rank))
    for code, errors in start_two(*[[str(DIFFERING), str(tmp_path)]] * 2):
        assert code == 0, errors
    for rank in (0, 1):
        ended = json.loads((tmp_path / f"{rank}_ended.json").read_text())
        for difference, (error, message, seconds) in zip(DIFFERENCES, ended, strict=True):
            assert error == difference.error, message
            assert all(text in message for text in difference.said), message
            assert seconds < 60
    assert not (tmp_path / "run").exists()


def test_two_processes_that_differ_end_with_one_line_each(pack: Path, tmp_path: Path) -> None:
    command = ["-m", "exfuse", *OPTIONS[:-1], f"output={tmp_path / 'run'}", f"data.root={pack}"]
    for code, errors in start_two(command, [*command, "data.val_split=train"]):
        assert code == 1
        assert errors.startswith("error: ")
        assert "rank 1 has data.val_split train and rank 0 val" in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_stops_tells_the_others_why(pack: Path, tmp_path: Path, rank: int) -> None:
    broken = Path(shutil.copytree(pack, tmp_path / "igloo"))
    image = broken / "images" / "train_0003.jpg"
    image.write_bytes(b"no image")
    command = ["-m", "exfuse", *OPTIONS[:-1], f"output={tmp_path / 'run'}"]
    commands = [[*command, f"data.root={broken if number == rank else pack}"] for number in (0, 1)]
    ended = start_two(*commands)
    assert [code for code, _ in ended] == [1, 1]
    own, other = (ended[number][1] for number in (rank, 1 - rank))
    assert own.startswith(f"error: {image}: ")
    assert other.startswith(f"error: rank {rank} stopped: {own.removeprefix('error: ').strip()}")
    assert "--resume" in other
    assert own.count("\n") == other.count("\n") == 1


def test_other_versions_are_a_difference_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "differences", lambda facts, dist: ", ".join(sorted(facts.keys() & VERSIONS)))
    config = load_config("demo")
    with pytest.raises(ConfigError, match="exfuse, numpy, python, torch"):
        run.check_agreement(config, False, DistContext(0, 2, torch.device("cpu")))
