"""R9: a process of a run of several dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

DYING = Path(__file__).with_name("dying_rank.py")
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
    assert "another process of this run is gone" in done.stderr
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
