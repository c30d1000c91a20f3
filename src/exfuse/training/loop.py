"""The training loop, from top to bottom; what is learnt is a `Task`."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from exfuse.atomic_io import atomic_write_text, describe_os_error, recover_folder
from exfuse.data.loader import (
    AHEAD,
    AugmentedDataset,
    Batch,
    ResumableBatchSampler,
    is_worker_failure,
    step_seed,
    training_loader,
    worker_error,
)
from exfuse.distributed import all_reduce_sum, any_across_ranks, barrier, broadcast_module
from exfuse.errors import CheckpointError, DataError, OutputError, TrainingError
from exfuse.inference.preprocessing import normalize
from exfuse.outputs.folder import OutputFolder, claim_folder
from exfuse.training.checkpoint import has_checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from exfuse.training.log import RunLog, StepClock
from exfuse.training.optim import learning_rate_factor, set_learning_rate
from exfuse.training.recipes import dump_config
from exfuse.training.run import CONFIG_FILE, Run, check_run
from exfuse.training.signals import Interrupted, StopRequested, StopSignals

NONFINITE_FILE = "not_finite_{rank}.json"


@dataclass(frozen=True)
class Evaluation:
    """What a network scored on the validation split.

    Attributes:
        score: What the best network has most of, 0 to 1.
        name: What the score is called.
        values: What is written down of it, the score included.
        save: Writes the network and its scores into a folder; told whether it was chosen for its score.
    """

    score: float
    name: str
    values: dict[str, float]
    save: Callable[[Path, bool], None]


class Task(Protocol):
    """What differs between learning one thing and another."""

    @property
    def best_folder(self) -> str:
        """Name of the folder, in that of the run, for the best network."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data: a run goes on with that it began with."""

    def samples(self) -> AugmentedDataset[Any]:
        """Returns the augmented training samples."""

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Returns the scalar to minimise, given what the network gave for a batch and the batch's targets."""

    def weight(self, targets: Tensor) -> Tensor:
        """Returns the weight, a scalar, with which the loss of a piece of a batch enters the batch's."""

    def evaluate(self, model: nn.Module, step: int, check_stop: Callable[[], None]) -> Evaluation:
        """Scores the network on the validation split, shared between the processes.

        All processes call `check_stop` equally often, about once an image.
        """


def run_training(run: Run, task: Task, resume: bool, stop: StopSignals, console: Console) -> None:
    """Trains to the end, leaving config, records, checkpoints, and the best and the last network in the run folder.

    Args:
        run: At step 0.
        task: What is learnt.
        resume: Go on from the latest checkpoint in the run folder, if there is one.
        stop: Signals to stop.
        console: Where progress goes.

    Raises:
        CheckpointError: If a checkpoint cannot be written or, resuming, read.
        OutputError: If the run folder is somebody else's, or another process is training in it.
        DataError: If a file can no longer be read, or a worker process died.
        TrainingError: If a number is no longer finite.
        Interrupted: After a signal, once the newest finished step is saved.
    """
    with ExitStack() as held:
        folder = _lock_run_folder(run, held)
        check_run(run.config, resume)  # again: what was there before may have been another process's beginning
        _begin(run, folder, task, resume, console)
        millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
        summary = (
            f"{run.samples} images, {run.total_steps} steps, a network of {millions:.1f} M parameters, "
            f"{run.config.precision} on {run.dist.device}: {run.config.output}"
        )
        console.print(summary, markup=False, highlight=False, soft_wrap=True)
        if run.warmup_steps < (asked := run.config.optimizer.warmup_steps):
            shorter = f"the warm-up is shortened from {asked} steps to {run.warmup_steps}, half of the run"
            console.print(shorter, markup=False, highlight=False, soft_wrap=True)
        stop.begin(alone=run.dist.size == 1)
        _run_until_done(run, task, stop, console)


def _lock_run_folder(run: Run, held: ExitStack) -> OutputFolder | None:
    """Keeps other runs out of the run folder; the first process does it for all, and all say if it cannot."""
    refused = folder = None
    if run.dist.is_main:
        try:
            folder = held.enter_context(claim_folder(run.config.output, run.config.command))
        except OutputError as error:
            refused = error
    if any_across_ranks(refused is not None, run.dist):
        raise refused or OutputError(f"{run.config.output}: the first process cannot write there")
    return folder


def _begin(run: Run, folder: OutputFolder | None, task: Task, resume: bool, console: Console) -> None:
    """Loads the latest checkpoint to go on from, or writes the recipe of a new run."""
    config = run.config
    if run.dist.is_main:
        for name in (task.best_folder, f"{task.best_folder}_last"):
            recover_folder(config.output / name)
    if resume and latest_checkpoint(run.checkpoints) is not None:
        run.state = load_checkpoint(run.checkpoints, run.model, run.ema_model, run.optimizers)
        if run.state.data_sha256 != task.fingerprint:
            raise DataError(f"the data is not what {config.output} was trained on so far; begin a new run")
    elif folder is not None:
        if resume:
            console.print(f"no checkpoint in {config.output} yet: this begins at step 0", markup=False, soft_wrap=True)
        folder.write(CONFIG_FILE, dump_config(config).encode(), sync=True)
    run.state.data_sha256 = task.fingerprint


def _run_until_done(run: Run, task: Task, stop: StopSignals, console: Console) -> None:
    config = run.config
    with RunLog(config.output, run.state, run.total_steps, console, run.dist.is_main) as log:
        try:
            _loop(run, task, log, stop)
        except StopRequested:
            if run.state.step:
                _save(run)
            barrier(run.dist)  # the first process may still be writing
            raise Interrupted(run.state.step, stop.received or SIGINT) from None
        except RuntimeError as error:
            # A worker's death is told by a signal, wherever the main thread is at that moment.
            if not is_worker_failure(error):
                raise
            ahead = run.state.step + AHEAD * config.data.workers + 1
            raise worker_error(error, task.samples(), _order(run, ahead)) from error
    barrier(run.dist)
    stop.saved_step = run.state.step


def _loop(run: Run, task: Task, log: RunLog, stop: StopSignals) -> None:
    """Takes the remaining steps, evaluating after every n-th epoch and saving every n-th step."""
    config, state = run.config, run.state
    last_step = run.total_steps
    clock = StepClock()
    # Closed at the end, whatever ends it: workers would live as long as the error that is handed on.
    with closing(training_loader(task.samples(), _order(run, last_step), config.data.workers)) as batches:
        while True:
            if run.is_evaluated(state.step) and state.evaluated_step < state.step:
                if not has_checkpoint(run.checkpoints):
                    _save(run)  # a run with scores can always go on
                _evaluate_and_keep(run, task, log, stop)
                clock = StepClock()
            if state.step > 0 and (state.step % config.checkpoint_every == 0 or run.is_evaluated(state.step)):
                _save(run)
            if state.step == last_step:
                return
            _stop_together(run, stop)
            with stop.interruptible(), clock.waiting():
                batch = _next_batch(batches, stop)
            loss = take_step(run, task, batch)
            state.step += 1
            log.advance(f"loss {loss:.3f}  {clock.tick():.2f} s/step")
            if state.step % config.log_every == 0 or state.step == last_step:
                rate, time = run.optimizers[0].param_groups[-1]["lr"], clock.mean()
                of_time = {"seconds_per_step": time.seconds, "waiting": time.waiting}
                log.record("train", state.step, epoch=_epoch(run), loss=loss, lr=rate, **of_time)


def _next_batch(batches: Iterator[Batch], stop: StopSignals) -> Batch:
    try:
        return next(batches)
    except DataError:
        if stop.received is None:
            raise
        raise StopRequested from None  # the workers were sent the same signal


def _stop_together(run: Run, stop: StopSignals) -> None:
    if any_across_ranks(stop.received is not None, run.dist):
        raise StopRequested


def _order(run: Run, last_step: int) -> ResumableBatchSampler:
    config, dist = run.config, run.dist
    return ResumableBatchSampler(
        run.samples, config.batch_size, run.state.step, last_step, config.seed, dist.rank, dist.size
    )


def take_step(run: Run, task: Task, batch: Batch) -> float:
    """Takes one optimizer step and returns the loss, the mean over the processes.

    A step whose loss or gradient is not finite is not taken: the run ends, or leaves it out where the recipe says so.
    """
    config, state = run.config, run.state
    schedule = config.optimizer
    factor = learning_rate_factor(state.step, run.total_steps, run.warmup_steps, schedule.schedule)
    set_learning_rate(run.optimizers, factor)
    # Whatever a layer draws (dropout, say) is a function of the step, as the samples are.
    torch.manual_seed(step_seed(config.seed, state.step, run.dist.rank))
    run.model.train()  # scoring has put it, or its average, into eval
    buffers = [buffer.clone() for buffer in run.model.buffers()] if config.max_skipped_steps else []
    value = _backward(run, task, batch)
    gradients = [parameter.grad for parameter in run.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if math.isfinite(value) and math.isfinite(norm):
        if config.optimizer.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(run.model.parameters(), config.optimizer.clip_grad_norm, norm)
        for optimizer in run.optimizers:
            optimizer.step()
        if run.ema is not None:
            run.ema.update(run.model, state.step)
        state.skipped = 0
    else:
        _skip_nonfinite_step(run, task, batch, value, float(norm), buffers)
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    return value


def _backward(run: Run, task: Task, batch: Batch) -> float:
    """Computes the gradients of a batch, piece by piece, and returns its loss.

    A piece counts by its share of the weight of the whole batch, over all processes, which is therefore summed first.
    """
    count, dist, network = run.config.gradient_accumulation, run.dist, run.network
    targets = batch.targets.to(dist.device, non_blocking=True).chunk(count)
    weights = torch.stack([task.weight(piece) for piece in targets]).double()
    shares = weights / all_reduce_sum(weights.sum(), dist).clamp(min=1e-12)
    total = torch.zeros((), device=dist.device)
    for index, (images, piece, share) in enumerate(
        zip(batch.images.chunk(count), targets, shares.tolist(), strict=True)
    ):
        is_last = index == count - 1
        wait = network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext()
        with wait:
            loss = task.loss(_forward(run, images), piece) * share
            # The processes' gradients are averaged, and their sum is what is wanted.
            (loss * dist.size).backward()
        total += loss.detach()
    return float(all_reduce_sum(total, dist))


def _skip_nonfinite_step(
    run: Run, task: Task, batch: Batch, loss: float, norm: float, buffers: Sequence[Tensor]
) -> None:
    """Writes down a step that is not finite; raises, or puts back the batch-norm statistics it has changed."""
    config, state, dataset = run.config, run.state, task.samples().dataset
    samples = [tuple(key) for key in batch.keys.tolist()]
    files = [str(dataset.image_path(index)) for _, index in samples]
    record = {
        "step": state.step + 1,
        "loss": str(loss),
        "gradient_norm": str(norm),
        "seed": config.seed,
        "samples": samples,
        "files": files,
    }
    path = config.output / NONFINITE_FILE.format(rank=run.dist.rank)
    try:
        atomic_write_text(path, json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        why = describe_os_error(error, config.output)
        raise CheckpointError(
            f"{path}: could not be written ({why}); it was to say of which files the loss at step"
            f" {state.step + 1} is {loss}: {', '.join(files)}"
        ) from error
    if state.skipped >= config.max_skipped_steps:
        raise TrainingError(
            f"step {state.step + 1}: the loss is {loss}, the gradient's norm {norm}; the weights are those before it. "
            f"Its files and seed are in {path}. A smaller learning rate, a longer warm-up or "
            "clip_grad_norm may help a new run; --resume with max_skipped_steps=3 leaves such steps out"
        )
    state.skipped += 1
    with torch.no_grad():
        for buffer, before in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _forward(run: Run, images: Tensor) -> Any:
    config, device = run.config, run.dist.device
    pixels = normalize(images.to(device, non_blocking=True), config.data.image_mean, config.data.image_std)
    if config.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return run.network(pixels)


def _evaluate_and_keep(run: Run, task: Task, log: RunLog, stop: StopSignals) -> None:
    """Scores the network (its average, if kept) on the validation split; writes it if it is the best or the last."""
    config, state = run.config, run.state
    model = run.ema_model or run.model
    broadcast_module(model, run.dist)  # batch-norm statistics are each process's own
    with stop.interruptible():
        evaluation = task.evaluate(model, state.step, lambda: _stop_together(run, stop))
    log.record("val", state.step, epoch=_epoch(run), **evaluation.values)
    is_best = evaluation.score > state.best_score  # which a score that is not a number never is
    if is_best:
        state.best_score, state.best_step = evaluation.score, state.step
    log.say(f"step {state.step}: val {evaluation.name} {evaluation.score:.4f}{' (best so far)' if is_best else ''}")
    is_last = state.step == run.total_steps
    if run.dist.is_main:
        for folder, wanted in ((task.best_folder, is_best), (f"{task.best_folder}_last", is_last)):
            if wanted:
                evaluation.save(config.output / folder, folder == task.best_folder)
    state.evaluated_step = state.step


def _epoch(run: Run) -> float:
    return run.state.step * run.config.batch_size / run.samples


def _save(run: Run) -> None:
    if run.dist.is_main:
        save_checkpoint(run.checkpoints, run.model, run.ema_model, run.optimizers, run.state)
