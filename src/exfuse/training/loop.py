"""The training loop, from top to bottom; what is learnt is a `Task`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from exfuse.data.stream import AugmentedDataset, Batch, SampleOrder, training_loader
from exfuse.distributed import any_rank, copy_from_first, sum_over_ranks, wait_for_all
from exfuse.errors import TrainingError
from exfuse.inference.preprocessing import normalize
from exfuse.training.checkpoint import load_checkpoint, save_checkpoint
from exfuse.training.log import RunLog, StepClock
from exfuse.training.optim import learning_rate_factor, set_learning_rate
from exfuse.training.recipes import dump_config
from exfuse.training.run import CONFIG_FILE, Run


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop and can go on
    """The run stopped at the user's wish after saving a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True)
class Evaluation:
    """What a network scored on the validation split.

    Attributes:
        score: What the best network has most of, 0 to 1.
        name: What the score is called.
        values: What is written down of it, the score included.
        save: Writes the network and its scores into a folder.
    """

    score: float
    name: str
    values: dict[str, float]
    save: Callable[[Path], None]


class Task(Protocol):
    """What differs between learning one thing and another."""

    @property
    def best_folder(self) -> str:
        """Name of the folder, in that of the run, for the best network."""

    def samples(self) -> AugmentedDataset[Any]:
        """Returns the augmented training samples."""

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Returns the scalar to minimise, given what the network gave for a batch and the batch's targets."""

    def evaluate(self, model: nn.Module, step: int) -> Evaluation:
        """Scores the network on the validation split, shared between the processes."""


def run_training(run: Run, task: Task, resume: bool, console: Console) -> None:
    """Trains to the end, leaving config, records, checkpoints, and the best and the last network in the run folder.

    Args:
        run: At step 0.
        task: What is learnt.
        resume: Go on from the latest checkpoint in the run folder.
        console: Where progress goes.

    Raises:
        CheckpointError: If a checkpoint cannot be written or, resuming, read.
        TrainingError: If the loss is no longer finite.
        Interrupted: After Ctrl-C, once a checkpoint is saved.
    """
    config = run.config
    if resume:
        run.state = load_checkpoint(run.checkpoints, run.model, run.averaged, run.optimizers)
    elif run.ranks.is_first:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    last_step = run.steps_of_epochs[-1]
    with (
        RunLog(config.output, run.state.step, last_step, console, run.ranks.is_first) as log,
        _stop_requests() as stop,
    ):
        _loop(run, task, log, stop)
    wait_for_all(run.ranks)


def _loop(run: Run, task: Task, log: RunLog, stop: "_Stop") -> None:
    """Takes the remaining steps, evaluating after every n-th epoch."""
    config, state = run.config, run.state
    last_step = run.steps_of_epochs[-1]
    evaluate_after = {*run.steps_of_epochs[config.evaluate_every - 1 :: config.evaluate_every], last_step}
    clock = StepClock()
    for batch in _batches(run, task, last_step):
        loss = _take_step(run, task, batch)
        state.step += 1
        log.advance(f"loss {loss:.3f}  {clock.tick():.2f} s/step")
        if state.step % config.log_every == 0:
            rate = run.optimizers[0].param_groups[-1]["lr"]
            log.record("train", state.step, epoch=_epoch(run), loss=loss, lr=rate, seconds_per_step=clock.mean())
        if state.step in evaluate_after:
            _evaluate_and_keep(run, task, log, is_last=state.step == last_step)
            clock = StepClock()
        stopping = any_rank(stop.requested, run.ranks)
        if stopping or state.step % config.checkpoint_every == 0 or state.step == last_step:
            _save(run)
        if stopping and state.step < last_step:
            wait_for_all(run.ranks)  # the first process may still be writing
            raise Interrupted(state.step)


def _batches(run: Run, task: Task, last_step: int) -> Iterator[Batch]:
    config, ranks = run.config, run.ranks
    order = SampleOrder(run.samples, config.batch_size, run.state.step, last_step, config.seed, ranks.rank, ranks.size)
    yield from training_loader(task.samples(), order, config.data.workers)


def _take_step(run: Run, task: Task, batch: Batch) -> float:
    """Takes one optimizer step and returns the loss, the mean over the processes."""
    config, state = run.config, run.state
    schedule = config.optimizer
    factor = learning_rate_factor(state.step, run.steps_of_epochs[-1], schedule.warmup_steps, schedule.schedule)
    set_learning_rate(run.optimizers, factor)
    run.model.train()
    total = torch.zeros((), device=run.ranks.device)
    chunks = list(zip(batch.images.chunk(config.accumulation), batch.targets.chunk(config.accumulation), strict=True))
    for index, (images, targets) in enumerate(chunks):
        is_last = index == len(chunks) - 1
        wait = (
            run.network.no_sync() if isinstance(run.network, DistributedDataParallel) and not is_last else nullcontext()
        )
        with wait:
            loss = task.loss(_forward(run, images), targets.to(run.ranks.device, non_blocking=True)) / len(chunks)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    value = float(sum_over_ranks(total, run.ranks)) / run.ranks.size
    if value != value or value in (float("inf"), float("-inf")):
        raise TrainingError(
            f"step {state.step}: the loss is {value}; the weights are those before this step. Samples (epoch, index): "
            f"{batch.keys.tolist()}, seed {config.seed}. A smaller learning rate, warm-up or gradient_clip may help"
        )
    if config.optimizer.gradient_clip:
        nn.utils.clip_grad_norm_(run.model.parameters(), config.optimizer.gradient_clip)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if run.average is not None:
        run.average.update(run.model, state.step)
    return value


def _forward(run: Run, images: Tensor) -> Any:
    config, device = run.config, run.ranks.device
    pixels = normalize(images.to(device, non_blocking=True), config.data.image_mean, config.data.image_std)
    if config.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return run.network(pixels)


def _evaluate_and_keep(run: Run, task: Task, log: RunLog, is_last: bool) -> None:
    """Scores the network (its average, if kept) on the validation split; writes it if it is the best or the last."""
    config, state = run.config, run.state
    model = run.averaged or run.model
    copy_from_first(model, run.ranks)  # batch-norm statistics are each process's own
    evaluation = task.evaluate(model, state.step)
    log.record("val", state.step, epoch=_epoch(run), **evaluation.values)
    is_best = state.best_step == 0 or evaluation.score > state.best_score
    if is_best:
        state.best_score, state.best_step = evaluation.score, state.step
    log.say(f"step {state.step}: val {evaluation.name} {evaluation.score:.4f}{' (best so far)' if is_best else ''}")
    if run.ranks.is_first:
        for folder, wanted in ((task.best_folder, is_best), (f"{task.best_folder}_last", is_last)):
            if wanted:
                evaluation.save(config.output / folder)


def _epoch(run: Run) -> float:
    return run.state.step * run.config.batch_size / run.samples


def _save(run: Run) -> None:
    if run.ranks.is_first:
        save_checkpoint(run.checkpoints, run.model, run.averaged, run.optimizers, run.state)


class _Stop:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Lets the first Ctrl-C only set a flag, so that the step under way is finished; a second one stops at once."""
    stop = _Stop()
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        # Not the previous handler: a background job of a shell script starts with the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
