"""What a step of the CamVid recipe costs on real data, and what a checkpoint of it does.

python benchmarks/training.py DATA [--rounds 9]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from exfuse.data.loader import ResumableBatchSampler, training_loader
from exfuse.distributed import only_process
from exfuse.training.checkpoint import load_checkpoint, save_checkpoint
from exfuse.training.recipes import load_config
from exfuse.training.run import Run, start_run
from exfuse.training.segmentation import SegmentationTask, set_up
from exfuse.training.step import take_step
from harness import interleave, memory_gib, peak_gib, write

RECIPE = "camvid_resnet18"
VARIANTS = {
    "bf16, channels_last": (),
    "bf16": ("channels_last=false",),
    "fp32, channels_last": ("precision=fp32",),
    "fp32": ("precision=fp32", "channels_last=false"),
}
REFERENCE = "bf16, channels_last"
INTERVAL = 50  # steps between checkpoints of which the share is reported


def prepare(data: Path, output: Path, *overrides: str) -> tuple[SegmentationTask, Run]:
    """Opens the data and builds the recipe's network."""
    config = load_config(RECIPE, [f"data.root={data}", f"output={output}", *overrides])
    dist = only_process("this benchmark")
    task, model = set_up(config, dist, Console(quiet=True))
    return task, start_run(config, model, len(task.train.dataset), dist)


class Step:
    """Reads a batch and trains on it as a run does; notes the seconds of the first part."""

    def __init__(self, task: SegmentationTask, run: Run) -> None:
        self.task, self.run = task, run
        order = ResumableBatchSampler(run.samples, run.config.batch_size, 0, 1000, run.config.seed)
        self.batches = training_loader(task.samples(), order, 0)
        self.waited: list[float] = []

    def __call__(self) -> None:
        """Takes a step."""
        started = time.perf_counter()
        batch = next(self.batches)
        self.waited.append(time.perf_counter() - started)
        take_step(self.run, self.task, batch)
        self.run.state.step += 1


def first_batch_ms(task: SegmentationTask, run: Run, step: int) -> float:
    """Returns how long it takes until the samples of a step are there, in a run that goes on at it."""
    started = time.perf_counter()
    order = ResumableBatchSampler(run.samples, run.config.batch_size, step, step + 1, run.config.seed)
    next(training_loader(task.samples(), order, 0))
    return 1000 * (time.perf_counter() - started)


def median_ms(action: Callable[[], object], times: int) -> float:
    """Returns how long an action takes, the median of several."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def peak_growth_mib(action: Callable[[], object]) -> float:
    """Returns how much more memory than before is in use at the worst moment of an action."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use now
    before = memory_gib("VmRSS")
    action()
    return 1024 * (peak_gib() - before)


def main() -> None:
    """Measures both and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "run"
        steps = {name: Step(*prepare(arguments.data, output, *keys)) for name, keys in VARIANTS.items()}
        task, run = steps[REFERENCE].task, steps[REFERENCE].run
        batch = run.config.batch_size

        def save() -> None:
            run.state.step += 1
            save_checkpoint(run.checkpoints, run.model, run.ema_model, run.optimizers, run.state)

        def load() -> None:
            load_checkpoint(run.checkpoints, run.model, run.ema_model, run.optimizers)

        timings = interleave(steps, REFERENCE, arguments.rounds)
        saving, loading = (median_ms(action, arguments.rounds) for action in (save, load))
        checkpoint = sum(path.stat().st_size for path in run.checkpoints.rglob("*") if path.is_file()) / 2**20
        growth = peak_growth_mib(save)
        last = run.total_steps - 1
        places = {
            step: first_batch_ms(task, run, step) for step in (0, run.samples // run.config.batch_size // 2, last)
        }
    share = saving / (INTERVAL * timings[REFERENCE].median_ms)
    waiting = 1000 * statistics.median(steps[REFERENCE].waited) / timings[REFERENCE].median_ms
    rows = [
        [name, f"{timing.median_ms:.0f}", timing.ratio_text(), f"{1000 * batch / timing.median_ms:.1f}"]
        for name, timing in timings.items()
    ]
    rows += [["save a checkpoint", f"{saving:.0f}", "", ""], ["load and check it", f"{loading:.0f}", "", ""]]
    rows += [[f"samples of step {step:,}, going on there", f"{value:.0f}", "", ""] for step, value in places.items()]
    height, width = run.config.data.crop_size
    write(
        f"training-{arguments.data.name}",
        f"Training steps and checkpoints, {RECIPE} on {arguments.data.name}",
        f"Batches of {batch} crops of {width} x {height} with Muon and the moving average, read by the training "
        f"process itself: {waiting:.1%} of a step of the first row. Ratios to the first row, median of the rounds "
        f"(least to greatest). A checkpoint has {checkpoint:.0f} MiB; one every {INTERVAL} steps takes {share:.1%} of "
        f"the time; saving it needs {growth:.0f} MiB of memory more.",
        ["", "median ms", "ratio", "images a second"],
        rows,
        [
            *({"step": name, **timing.to_json()} for name, timing in timings.items()),
            {"waiting": waiting},
            {"save_ms": saving, "share": share, "checkpoint_mib": checkpoint, "growth_mib": growth},
            {"load_ms": loading},
            {"first_batch_ms": places},
        ],
    )


if __name__ == "__main__":
    main()
