"""A training run that is killed again and again; prints what it did as JSON.

DATA OUTPUT STEPS KILLS SEED [OPTION ...]

Each attempt is a forked process that trains, or goes on, and is killed, until one comes to the end: that after the last
kill, or an earlier one that was fast enough.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from exfuse.training.checkpoint import latest_checkpoint
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train
from support.faults import Operations, in_a_child, kill_myself

OVERRIDES = (
    "batch_size=4", "evaluate_every=20", "checkpoint_every=7", "log_every=1", "data.crop_size=[64, 64]",
    "model.name=exfuse_tiny", "model.decoder_width=8", "model.gcn_kernel=3",
)  # fmt: skip
STEPS_OF_EPOCH = 3  # twelve images in batches of four
OPERATIONS = 30  # about as many as a save has


def after_steps(output: Path, steps: int, seconds: float) -> Callable[[], bool]:
    """Returns a question that says yes some time after so many steps beyond the last checkpoint."""
    records = output / "metrics.jsonl"
    latest = latest_checkpoint(output / "checkpoints")
    target = steps + (int(latest.name.removeprefix("step_")) if latest else 0)
    before = records.stat().st_mtime_ns if records.exists() else 0
    reached: list[float] = []

    def is_time() -> bool:
        # Until it goes on, the file has the steps that the last kill took back.
        if not reached and records.exists() and records.stat().st_mtime_ns != before:
            recorded = [json.loads(line).get("step", 0) for line in records.read_text().splitlines() if line[-1] == "}"]
            if max(recorded, default=0) >= target:
                reached.append(time.monotonic())
        return bool(reached) and time.monotonic() >= reached[0] + seconds

    return is_time


def run(data: Path, output: Path, steps: int, kills: int, seed: int, changed: list[str]) -> dict[str, object]:
    epochs = steps // STEPS_OF_EPOCH
    options = [*OVERRIDES, f"epochs={epochs}", f"data.root={data}", f"output={output}", *changed]
    config = load_config("demo", options)
    rng = random.Random(seed)
    checkpoints = output / "checkpoints"
    reached: list[str] = []
    inside = 0

    def attempt(operation: int) -> None:
        import torch

        torch.set_num_threads(1)
        with Operations(checkpoints, operation, kill_myself).installed():
            train(config, resume=True, console=Console(quiet=True))

    while True:
        # Every other kill comes at a file operation of a save, the rest at any moment; none after the last.
        last, at_a_save = len(reached) == kills, len(reached) % 2
        operation = rng.randint(1, 3 * OPERATIONS) if at_a_save and not last else 0
        further, seconds = rng.randint(1, steps // 5), rng.uniform(0.0, 0.1)
        moment = None if at_a_save or last else after_steps(output, further, seconds)
        code = in_a_child(partial(attempt, operation), moment)
        if code == 0:
            return {"kills": len(reached), "inside": inside, "reached": reached}
        assert code == -9, f"ended with {code}"
        latest = latest_checkpoint(checkpoints)
        reached.append(latest.name if latest else "nothing")
        inside += operation > 0  # of the checkpoints' folder, where nothing but saves writes


if __name__ == "__main__":
    data, output, steps, kills, seed, *changed = sys.argv[1:]
    print(json.dumps(run(Path(data), Path(output), int(steps), int(kills), int(seed), changed)))
