"""The log of a run: `metrics.jsonl`, TensorBoard, and a progress bar or, without a terminal, lines of text."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from exfuse.atomic_io import atomic_write_text, describe_os_error, read_file
from exfuse.errors import CheckpointError, brief
from exfuse.training.checkpoint import TrainingState

METRICS_FILE = "metrics.jsonl"
MAX_METRICS = 2**28  # bytes, more than a million records
TENSORBOARD_FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."
KINDS = ("train", "val")


class RunLog:
    """Writes a run's records. Each has its step, and no step is recorded twice, even after resuming.

    Args:
        folder: The run folder.
        state: The state of the run. Records of later steps and evaluations, written after the checkpoint by an
            interrupted run, are removed.
        total_steps: Steps of the whole run.
        console: Shows the progress bar. If it is not a terminal, each training record is printed as a line instead.
        active: Whether to write anything; True only in the first process.
    """

    def __init__(self, folder: Path, state: TrainingState, total_steps: int, console: Console, active: bool) -> None:
        self._active = active
        self._total_steps = total_steps
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (active and console.is_terminal),
        )
        self._bar = self._progress.add_task("training", total=total_steps, completed=state.step, status="")
        if active:
            self._path = folder / METRICS_FILE
            kept_until = {"train": state.step, "val": state.evaluated_step}
            records = [record for record in read_records(folder) if record["step"] <= kept_until[record["kind"]]]
            with self._errors_named():
                atomic_write_text(self._path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
                _sort_events_first(folder / TENSORBOARD_FOLDER)
                self._tensorboard = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=state.step + 1)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._active and kind is None:
            with self._errors_named():
                self._tensorboard.close()
        elif self._active:
            with suppress(OSError):  # must not hide the error that ended the run
                self._tensorboard.close()

    def advance(self, status: str) -> None:
        """Advances the bar by one step and shows the status next to it."""
        self._progress.update(self._bar, advance=1, status=status)

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def record(self, kind: str, step: int, **values: float) -> None:
        """Adds a record.

        Args:
            kind: "train" or "val".
            step: Optimizer steps taken so far.
            values: Measured values by name; a non-finite value is written as null.
        """
        if not self._active:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._errors_named(), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **clean}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint on disk must not be ahead of the records
        if kind == "train" and not self._progress.console.is_terminal:
            # Without a terminal there is no bar, so records show the progress.
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"step {step}/{self._total_steps}  {shown}")
        with self._errors_named():
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = describe_os_error(error, self._path.parent)
            raise CheckpointError(f"{self._path.parent}: the run's records could not be written ({reason})") from error


def _sort_events_first(folder: Path) -> None:
    """Renames existing event files so that they sort before the next one.

    TensorBoard reads event files in the order of their names, which start with the time. A later file replaces the
    steps of earlier files from its own first step on. If the clock was set back, the existing file would sort last and
    replace the new one. Behind a symbolic link, the folder may contain files of other runs, which are not renamed.
    """
    if folder.is_symlink():
        return
    for number, path in enumerate(sorted(folder.glob(f"{EVENTS}*"))):
        _, _, rest = path.name.removeprefix(EVENTS).partition(".")
        target = path.with_name(f"{EVENTS}{number:010d}.{rest}")
        if not target.exists():
            path.rename(target)


class StepTime(NamedTuple):
    """Mean times over several steps.

    Attributes:
        seconds: Wall-clock seconds per step.
        waiting: Fraction of this time, 0 to 1, spent waiting for the next batch (or loading it, without workers).
    """

    seconds: float
    waiting: float


class StepClock:
    """Times steps from one tick to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: list[float] = []
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent in the block as waiting."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def tick(self) -> float:
        """Ends a step and returns the seconds since the previous tick."""
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        return self._seconds[-1]

    def mean(self) -> StepTime:
        """Returns the means over the steps since the previous call."""
        total = sum(self._seconds)
        mean = StepTime(total / len(self._seconds), self._waited / total)
        self._seconds.clear()
        self._waited = 0.0
        return mean


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a run, oldest first; empty before its start. A truncated last line is ignored.

    Raises:
        CheckpointError: If the file cannot be read or contains an invalid line.
    """
    path = folder / METRICS_FILE
    try:
        *lines, _ = read_file(path, MAX_METRICS).split(b"\n")  # a line without a newline is truncated
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path}: the run's records cannot be read ({error.strerror})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if record["kind"] not in KINDS or type(record["step"]) is not int:
                raise ValueError(f"kind {record['kind']!r}, step {record['step']!r}")
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: line {number} is not a valid record ({brief(error)}); remove the line to continue without it"
            ) from error
        records.append(record)
    return records
