"""What a run says while it runs: `metrics.jsonl`, TensorBoard, and a progress bar or, in a log file, lines."""

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
MAX_METRICS = 2**28  # bytes: over a million records
TENSORBOARD_FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."
KINDS = ("train", "val")


class RunLog:
    """Writes a run's records. Every record carries its step, and no step is recorded twice, resumed or not.

    Args:
        folder: The run folder.
        state: Where the run stands. Records of later steps and scores, left by a run that was cut off after its last
            checkpoint, are removed.
        total_steps: Steps of the whole run.
        console: Where the progress bar goes. Where it is no terminal, a line is printed for each record instead.
        active: False on all processes but the first: nothing is written.
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
                _put_first(folder / TENSORBOARD_FOLDER)
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
            with suppress(OSError):  # the error that ends the run is the one to be seen
                self._tensorboard.close()

    def advance(self, status: str) -> None:
        """Moves the bar by one step and shows the status beside it."""
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
            values: What was measured; what is not finite is written as null.
        """
        if not self._active:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._errors_named(), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **clean}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint on the disk must not be ahead of it
        if kind == "train" and not self._progress.console.is_terminal:
            # Where no bar is drawn, in a log file say, the records are the progress.
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
            why = describe_os_error(error, self._path.parent)
            raise CheckpointError(f"{self._path.parent}: the run's records could not be written ({why})") from error


def _put_first(folder: Path) -> None:
    """Renames event files so that they sort before the one to come.

    TensorBoard reads them in the order of their names, which begin with the time, and a later one hides the steps that
    its beginning has in common with earlier ones. After the clock was set back, the older file would be the later one.
    A link leads to a folder where other runs' files may be, which keep their names.
    """
    if folder.is_symlink():
        return
    for number, path in enumerate(sorted(folder.glob(f"{EVENTS}*"))):
        _, _, rest = path.name.removeprefix(EVENTS).partition(".")
        target = path.with_name(f"{EVENTS}{number:010d}.{rest}")
        if not target.exists():
            path.rename(target)


class StepTime(NamedTuple):
    """Means over some steps.

    Attributes:
        seconds: Of a step, everything counted.
        waiting: The fraction of them, 0 to 1, in which the next batch was waited for (or read, without workers).
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
        """Counts what is done meanwhile as waiting."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def tick(self) -> float:
        """Ends a step and returns its seconds, everything between the ticks counted."""
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        return self._seconds[-1]

    def mean(self) -> StepTime:
        """Returns the means over the steps since the last call of this."""
        total = sum(self._seconds)
        mean = StepTime(total / len(self._seconds), self._waited / total)
        self._seconds.clear()
        self._waited = 0.0
        return mean


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a run, oldest first; none before it began. A last line that was cut off is left out.

    Raises:
        CheckpointError: If the file cannot be read or another line is no record.
    """
    path = folder / METRICS_FILE
    try:
        *lines, _ = read_file(path, MAX_METRICS).split(b"\n")  # what is behind the last newline was cut off
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
                f"{path}: line {number} is not the record of a step ({brief(error)}); remove that line to go on without"
            ) from error
        records.append(record)
    return records
