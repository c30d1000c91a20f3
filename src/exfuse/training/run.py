"""A training run: its network, optimizers, moving average and state, and the checks before it starts."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from exfuse.distributed import DistContext, barrier, differences, process_group
from exfuse.errors import ConfigError, DataError, OutputError, ProcessError, TrainingError, brief
from exfuse.outputs.folder import check_folder
from exfuse.training.checkpoint import TrainingState, has_checkpoint
from exfuse.training.config import RunConfig
from exfuse.training.log import read_records
from exfuse.training.optim import ExponentialMovingAverage, build_optimizers
from exfuse.training.process import process_as_before
from exfuse.training.recipes import differing_keys, load_recorded, shared_settings
from exfuse.training.signals import StopSignals, stop_signals

CONFIG_FILE = "config.yaml"


@dataclass
class Run:
    """Everything that the training loop uses."""

    config: RunConfig
    dist: DistContext
    samples: int  # in the training split
    model: nn.Module
    network: nn.Module  # the model, wrapped in DistributedDataParallel if there are several processes
    ema: ExponentialMovingAverage | None
    optimizers: tuple[Optimizer, ...]
    state: TrainingState

    @property
    def total_steps(self) -> int:
        """The smallest number of steps that covers all epochs."""
        return -(-self.config.epochs * self.samples // self.config.batch_size)

    @property
    def warmup_steps(self) -> int:
        """The recipe's warm-up, but at most half of all steps, so that a short run reaches the peak learning rate."""
        return min(self.config.optimizer.warmup_steps, self.total_steps // 2)

    def is_evaluated(self, step: int) -> bool:
        """Returns whether the network is evaluated after a step: the last step, and the end of every n-th epoch."""
        batch, n = self.config.batch_size, self.config.evaluate_every
        epochs_done = (step * batch // self.samples, max(step - 1, 0) * batch // self.samples)
        return step == self.total_steps or epochs_done[0] // n > epochs_done[1] // n

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.config.output / "checkpoints"

    @property
    def ema_model(self) -> nn.Module | None:
        """The network with averaged weights, if the run has one."""
        return self.ema.model if self.ema else None


@contextmanager
def training_session(
    config: RunConfig, resume: bool, console: Console
) -> Iterator[tuple[DistContext, StopSignals, Console]]:
    """Joins the process group, installs the signal handlers and checks the recipe, the processes and the run folder.

    Yields:
        This process's context, the signals, and a console that prints only in the first process.

    Raises:
        ConfigError: If the processes differ, a batch cannot be divided among them, or the run was started differently.
        OutputError: If the run folder is not free.
        TrainingError: If memory is exhausted, or another process of the run can no longer be reached.
        Interrupted: After a signal that the block did not handle itself.
    """
    try:
        with process_as_before(), stop_signals() as stop, process_group() as dist:
            check_agreement(config, resume, dist)
            check_shards(config, dist)
            check_output(config, resume)
            barrier(dist)  # no process writes before all have finished these checks
            yield dist, stop, console if dist.is_main else Console(quiet=True)
    except ProcessError as error:
        raise TrainingError(f"{error}; --resume continues from the latest checkpoint") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory ({brief(error)}); use a smaller data.crop_size or batch_size, or a larger "
            "gradient_accumulation"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that Python, torch or its C++ code could not allocate memory."""
    phrases = ("allocate memory", "bad_alloc", "out of memory")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def check_output(config: RunConfig, resume: bool) -> None:
    """Checks that the run folder is free for a new run, or contains the run to resume.

    A run that was interrupted before its first checkpoint and its first score starts again when resumed. A run whose
    checkpoints were removed can neither be resumed nor overwritten.

    Raises:
        OutputError: If the folder contains files that are not ours, or a run that is not to be resumed.
        ConfigError: If the recorded configuration would train differently.
    """
    if check_folder(config.output, config.command):
        check_run(config, resume)


def check_run(config: RunConfig, resume: bool) -> None:
    """Checks the contents of an existing run folder; see `check_output`."""
    is_resumable, records = has_checkpoint(config.output / "checkpoints"), read_records(config.output)
    was_scored = any(record["kind"] == "val" for record in records) or any(config.output.glob("*/config.json"))
    if was_scored and not is_resumable:
        raise OutputError(
            f"{config.output}: contains a run without checkpoints, which cannot be resumed; use output=ANOTHER_FOLDER"
        )
    if (is_resumable or records) and not resume:
        raise OutputError(
            f"{config.output}: already contains a run; add --resume to continue it, or use output=ANOTHER_FOLDER"
        )
    if not is_resumable:
        return
    recorded = config.output / CONFIG_FILE
    changed = differing_keys(load_recorded(recorded, type(config)), config)
    if changed:
        settings = ", ".join(f"{key}={old} (now {new})" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{recorded}: the run to resume was started with {settings}; use the same values, or output=ANOTHER_FOLDER"
        )


def check_agreement(config: RunConfig, resume: bool, dist: DistContext) -> None:
    """Checks that all processes of a run have the same settings, options and library versions.

    Raises:
        ConfigError: If they differ; the message contains the differences from the first process.
    """
    versions = {name: version(name) for name in ("exfuse", "torch", "numpy", "pillow")}
    facts = shared_settings(config) | {"--resume": resume, "python": platform.python_version()} | versions
    if found := differences(facts, dist):
        raise ConfigError(f"the processes of this run differ: {found}; start all of them with the same settings")


def check_data(facts: Mapping[str, object], dist: DistContext) -> None:
    """Checks that all processes of a run read the same data.

    Args:
        facts: Properties of the data that this process has read; see `differences`.
        dist: This process's context.

    Raises:
        DataError: If they differ; the message contains the differences from the first process.
    """
    if found := differences(facts, dist):
        raise DataError(f"the processes of this run read different data: {found}; give all of them the same files")


def check_shards(config: RunConfig, dist: DistContext) -> None:
    """Checks that a batch divides evenly into the pieces of all processes.

    Raises:
        ConfigError: If it does not.
    """
    pieces = config.gradient_accumulation * dist.size
    if config.batch_size % pieces:
        raise ConfigError(
            f"batch_size {config.batch_size} is not a multiple of {pieces} "
            f"(gradient_accumulation {config.gradient_accumulation} times {dist.size} processes)"
        )


def start_run(config: RunConfig, model: nn.Module, samples: int, dist: DistContext) -> Run:
    """Returns a run at step 0.

    Args:
        config: The recipe.
        model: An untrained network with a `backbone`.
        samples: Number of samples in the training split.
        dist: This process's context.
    """
    if dist.size > 1 and dist.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model = model.to(dist.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = config.optimizer
    return Run(
        config=config,
        dist=dist,
        samples=samples,
        model=model,
        network=DistributedDataParallel(model) if dist.size > 1 else model,
        ema=ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None,
        optimizers=build_optimizers(
            model,
            optimizer.name,
            optimizer.learning_rate,
            optimizer.backbone_lr_scale,
            optimizer.weight_decay,
            optimizer.momentum,
        ),
        state=TrainingState(),
    )
