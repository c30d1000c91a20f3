"""A training run that is killed again and again: DATA OUTPUT KILLS SEED PRECISION; prints what it did as JSON.

Each attempt is a forked process that trains, or goes on, and is killed after a random time; the last one may finish.
"""

import json
import random
import sys
import time
from pathlib import Path

from faults import in_a_child
from rich.console import Console

from exfuse.training.checkpoint import latest_checkpoint
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train

OVERRIDES = (
    "batch_size=4", "evaluate_every=20", "checkpoint_every=7", "log_every=1", "data.crop_size=[64, 64]",
    "model.name=exfuse_tiny", "model.decoder_width=8", "model.gcn_kernel=3",
)  # fmt: skip
STEPS = 200


def run(data: Path, output: Path, kills: int, seed: int, precision: str) -> dict[str, object]:
    epochs = STEPS * 4 // 12 + (STEPS * 4 % 12 > 0)  # of twelve images in batches of four
    options = [*OVERRIDES, f"epochs={epochs}", f"precision={precision}", f"data.root={data}", f"output={output}"]
    config = load_config("demo", options)
    rng = random.Random(seed)
    reached: list[str] = []

    def attempt() -> None:
        import torch

        torch.set_num_threads(1)
        train(config, resume=True, console=Console(quiet=True))

    while len(reached) < kills:
        started = time.monotonic()
        code = in_a_child(attempt, kill_after=rng.uniform(1.0, 8.0))
        latest = latest_checkpoint(config.output / "checkpoints")
        reached.append(latest.name if latest else "nothing")
        if code == 0:
            break
        assert code == -9, f"ended with {code} after {time.monotonic() - started:.1f} s"
    code = in_a_child(attempt)
    assert code == 0, f"the last attempt ended with {code}"
    return {"kills": len(reached), "reached": reached}


if __name__ == "__main__":
    data, output, kills, seed, precision = sys.argv[1:]
    print(json.dumps(run(Path(data), Path(output), int(kills), int(seed), precision)))
