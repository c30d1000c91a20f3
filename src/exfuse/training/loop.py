"""The training loop: batches, steps, evaluations and checkpoints, for any `Task`."""

from collections.abc import Iterator
from contextlib import closing

from exfuse.data.loader import Batch, ResumableBatchSampler, training_loader
from exfuse.distributed import any_across_ranks, broadcast_module
from exfuse.errors import DataError
from exfuse.training.checkpoint import has_checkpoint, save_checkpoint
from exfuse.training.log import RunLog, StepClock
from exfuse.training.run import Run
from exfuse.training.signals import StopRequested, StopSignals
from exfuse.training.step import take_step
from exfuse.training.task import Task


def train_steps(run: Run, task: Task, log: RunLog, stop: StopSignals) -> None:
    """Takes the remaining steps, with evaluations and checkpoints at the intervals of the recipe."""
    config, state = run.config, run.state
    last_step = run.total_steps
    clock = StepClock()
    # Closed explicitly: otherwise the traceback of a propagating error would keep the workers alive.
    with closing(training_loader(task.samples(), batch_order(run, last_step), config.data.workers)) as batches:
        while True:
            if run.is_evaluated(state.step) and state.evaluated_step < state.step:
                if not has_checkpoint(run.checkpoints):
                    save(run)  # so that a run with scores can always be resumed
                _evaluate_and_keep(run, task, log, stop)
                clock = StepClock()
            if state.step > 0 and (state.step % config.checkpoint_every == 0 or run.is_evaluated(state.step)):
                save(run)
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
                timing = {"seconds_per_step": time.seconds, "waiting": time.waiting}
                log.record("train", state.step, epoch=_epoch(run), loss=loss, lr=rate, **timing)


def _next_batch(batches: Iterator[Batch], stop: StopSignals) -> Batch:
    try:
        return next(batches)
    except DataError:
        if stop.received is None:
            raise
        raise StopRequested from None  # the workers failed because they received the same signal


def _stop_together(run: Run, stop: StopSignals) -> None:
    if any_across_ranks(stop.received is not None, run.dist):
        raise StopRequested


def batch_order(run: Run, last_step: int) -> ResumableBatchSampler:
    """Returns the order of this process's samples, from the run's current step to `last_step` (exclusive)."""
    config, dist = run.config, run.dist
    return ResumableBatchSampler(
        run.samples, config.batch_size, run.state.step, last_step, config.seed, dist.rank, dist.size
    )


def _evaluate_and_keep(run: Run, task: Task, log: RunLog, stop: StopSignals) -> None:
    """Scores the network (or its moving average) on the validation split; saves it if it is the best or the last."""
    config, state = run.config, run.state
    model = run.ema_model or run.model
    broadcast_module(model, run.dist)  # batch-norm statistics differ between processes
    with stop.interruptible():
        evaluation = task.evaluate(model, state.step, lambda: _stop_together(run, stop))
    log.record("val", state.step, epoch=_epoch(run), **evaluation.values)
    is_best = evaluation.score > state.best_score  # False if the score is nan
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


def save(run: Run) -> None:
    """Saves a checkpoint, in the first process only."""
    if run.dist.is_main:
        save_checkpoint(run.checkpoints, run.model, run.ema_model, run.optimizers, run.state)
