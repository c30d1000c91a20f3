"""A training run that is killed again and again: DATA OUTPUT KILLS SEED [OPTION ...]; prints what it did as JSON.

Each attempt is a forked process that trains, or goes on, and is killed, until one comes to the end: that after the last
kill, or an earlier one that was fast enough.
"""

import json
import random
import sys
from functools import partial
from pathlib import Path

from faults import Operations, in_a_child, kill_myself
from rich.console import Console

from exfuse.training.checkpoint import latest_checkpoint
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train

OVERRIDES = (
    "batch_size=4", "evaluate_every=20", "checkpoint_every=7", "log_every=1", "data.crop_size=[64, 64]",
    "model.name=exfuse_tiny", "model.decoder_width=8", "model.gcn_kernel=3",
)  # fmt: skip
STEPS = 200
OPERATIONS = 30  # about as many as a save has


def run(data: Path, output: Path, kills: int, seed: int, changed: list[str]) -> dict[str, object]:
    epochs = STEPS * 4 // 12 + (STEPS * 4 % 12 > 0)  # of twelve images in batches of four
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
        delay = rng.uniform(1.0, 8.0) if not at_a_save and not last else None
        code = in_a_child(partial(attempt, operation), delay)
        if code == 0:
            return {"kills": len(reached), "inside": inside, "reached": reached}
        assert code == -9, f"ended with {code}"
        latest = latest_checkpoint(checkpoints)
        reached.append(latest.name if latest else "nothing")
        inside += operation > 0  # of the checkpoints' folder, where nothing but saves writes


if __name__ == "__main__":
    data, output, kills, seed, *changed = sys.argv[1:]
    print(json.dumps(run(Path(data), Path(output), int(kills), int(seed), changed)))
