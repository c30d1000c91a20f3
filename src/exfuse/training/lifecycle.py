"""The life cycle of a run: locking its folder, starting or resuming, training, and saving when stopped."""

from contextlib import ExitStack
from signal import SIGINT

from rich.console import Console

from exfuse.atomic_io import recover_folder
from exfuse.data.loader import PREFETCH_FACTOR, is_worker_failure, worker_error
from exfuse.distributed import any_across_ranks, barrier
from exfuse.errors import DataError, OutputError
from exfuse.outputs.folder import OutputFolder, claim_folder
from exfuse.training.checkpoint import latest_checkpoint, load_checkpoint
from exfuse.training.log import RunLog
from exfuse.training.loop import batch_order, save, train_steps
from exfuse.training.recipes import dump_config
from exfuse.training.run import CONFIG_FILE, Run, check_run
from exfuse.training.signals import Interrupted, StopRequested, StopSignals
from exfuse.training.task import Task


def run_training(run: Run, task: Task, resume: bool, stop: StopSignals, console: Console) -> None:
    """Trains to the end; writes recipe, records, checkpoints, and the best and last network to the run folder.

    Args:
        run: A run at step 0.
        task: The task to train.
        resume: Whether to continue from the latest checkpoint in the run folder, if there is one.
        stop: The signals that stop the run.
        console: Prints progress.

    Raises:
        CheckpointError: If a checkpoint cannot be written or, with `resume`, read.
        OutputError: If the run folder contains files that are not ours, or another process is training in it.
        DataError: If a file can no longer be read, or a worker process died.
        TrainingError: If the loss or the gradient is not finite.
        Interrupted: After a signal, once the last finished step is saved.
    """
    with ExitStack() as held:
        folder = _lock_run_folder(run, held)
        check_run(run.config, resume)  # repeated under the lock: another process may have started a run meanwhile
        _begin(run, folder, task, resume, console)
        millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
        summary = (
            f"{run.samples} images, {run.total_steps} steps, a network of {millions:.1f} M parameters, "
            f"{run.config.precision} on {run.dist.device}: {run.config.output}"
        )
        console.print(summary, markup=False, highlight=False, soft_wrap=True)
        if run.warmup_steps < (asked := run.config.optimizer.warmup_steps):
            notice = f"the warm-up is shortened from {asked} steps to {run.warmup_steps}, half of the run"
            console.print(notice, markup=False, highlight=False, soft_wrap=True)
        stop.begin(alone=run.dist.size == 1)
        _run_until_done(run, task, stop, console)


def _lock_run_folder(run: Run, held: ExitStack) -> OutputFolder | None:
    """Locks the run folder; the first process does so for all, and all raise an error if it fails."""
    refused = folder = None
    if run.dist.is_main:
        try:
            folder = held.enter_context(claim_folder(run.config.output, run.config.command))
        except OutputError as error:
            refused = error
    if any_across_ranks(refused is not None, run.dist):
        raise refused or OutputError(f"{run.config.output}: the first process cannot use this folder; see its error")
    return folder


def _begin(run: Run, folder: OutputFolder | None, task: Task, resume: bool, console: Console) -> None:
    """Loads the latest checkpoint when resuming, or writes the recipe of a new run."""
    config = run.config
    if run.dist.is_main:
        for name in (task.best_folder, f"{task.best_folder}_last"):
            recover_folder(config.output / name)
    if resume and latest_checkpoint(run.checkpoints) is not None:
        run.state = load_checkpoint(run.checkpoints, run.model, run.ema_model, run.optimizers)
        if run.state.data_sha256 != task.fingerprint:
            raise DataError(
                f"{config.output}: the data has changed since this run was started; restore it, or use "
                "output=ANOTHER_FOLDER for a new run"
            )
    elif folder is not None:
        if resume:
            console.print(f"{config.output}: no checkpoint yet, starting at step 0", markup=False, soft_wrap=True)
        folder.write(CONFIG_FILE, dump_config(config).encode(), sync=True)
    run.state.data_sha256 = task.fingerprint


def _run_until_done(run: Run, task: Task, stop: StopSignals, console: Console) -> None:
    config = run.config
    with RunLog(config.output, run.state, run.total_steps, console, run.dist.is_main) as log:
        try:
            train_steps(run, task, log, stop)
        except StopRequested:
            if run.state.step:
                save(run)
            barrier(run.dist)  # the first process may still be writing
            raise Interrupted(run.state.step, stop.received or SIGINT) from None
        except RuntimeError as error:
            # torch raises a worker's death from a signal handler, wherever the main thread happens to be.
            if not is_worker_failure(error):
                raise
            ahead = run.state.step + PREFETCH_FACTOR * config.data.workers + 1
            raise worker_error(error, task.samples(), batch_order(run, ahead)) from error
    barrier(run.dist)
    stop.saved_step = run.state.step
