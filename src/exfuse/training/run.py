"""What a training run stands on: the network, its optimizers and average, where it stands; and its folder."""

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
    """Everything the loop works on."""

    config: RunConfig
    dist: DistContext
    samples: int  # in the training split
    model: nn.Module
    network: nn.Module  # the model, wrapped where there are several processes
    ema: ExponentialMovingAverage | None
    optimizers: tuple[Optimizer, ...]
    state: TrainingState

    @property
    def total_steps(self) -> int:
        """The number of steps after which the last epoch's last sample was used."""
        return -(-self.config.epochs * self.samples // self.config.batch_size)

    @property
    def warmup_steps(self) -> int:
        """The recipe's, but at most half of all steps: so the learning rate comes to its peak in a short run, too."""
        return min(self.config.optimizer.warmup_steps, self.total_steps // 2)

    def is_evaluated(self, step: int) -> bool:
        """Returns whether the network is scored after a step: the last one, and those that end every n-th epoch."""
        batch, n = self.config.batch_size, self.config.evaluate_every
        epochs_done = (step * batch // self.samples, max(step - 1, 0) * batch // self.samples)
        return step == self.total_steps or epochs_done[0] // n > epochs_done[1] // n

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.config.output / "checkpoints"

    @property
    def ema_model(self) -> nn.Module | None:
        """The moving average as a network, if the run keeps one."""
        return self.ema.model if self.ema else None


@contextmanager
def training_session(
    config: RunConfig, resume: bool, console: Console
) -> Iterator[tuple[DistContext, StopSignals, Console]]:
    """Joins the other processes, listens to signals and checks the recipe against them and the run folder.

    Yields:
        This process's place, the signals, and where it may print.

    Raises:
        ConfigError: If the folder is not free, holds another run, or a batch cannot be shared.
        TrainingError: If the memory is used up, or another process of the run can no longer be reached.
        Interrupted: After a signal that the block did not deal with itself.
    """
    try:
        with process_as_before(), stop_signals() as stop, process_group() as dist:
            check_agreement(config, resume, dist)
            check_shards(config, dist)
            check_output(config, resume)
            barrier(dist)  # nobody writes before all have looked
            yield dist, stop, console if dist.is_main else Console(quiet=True)
    except ProcessError as error:
        raise TrainingError(f"{error}; --resume goes on from the latest checkpoint") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"the memory is used up ({brief(error)}); a smaller data.crop_size or batch_size, or a larger "
            "gradient_accumulation, needs less"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is how Python, torch or the C++ below it says that it got no memory."""
    signs = ("allocate memory", "bad_alloc", "out of memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def check_output(config: RunConfig, resume: bool) -> None:
    """Checks that the run folder is free for a new run, or holds the run to resume.

    A run that was cut off before its first checkpoint and its first score begins anew when it is resumed. One whose
    checkpoints were removed can neither go on nor be written over.

    Raises:
        OutputError: If the folder is somebody else's, or holds a run and it is not the one to resume.
        ConfigError: If the recorded configuration would train differently.
    """
    if check_folder(config.output, config.command):
        check_run(config, resume)


def check_run(config: RunConfig, resume: bool) -> None:
    """Checks what a run folder of ours holds; see `check_output`."""
    can_go_on, records = has_checkpoint(config.output / "checkpoints"), read_records(config.output)
    was_scored = any(record["kind"] == "val" for record in records) or any(config.output.glob("*/config.json"))
    if was_scored and not can_go_on:
        raise OutputError(
            f"{config.output} holds a run without its checkpoints, which cannot go on; use output=ANOTHER_FOLDER"
        )
    if (can_go_on or records) and not resume:
        raise OutputError(
            f"{config.output} holds a run already: add --resume to go on with it, or output=ANOTHER_FOLDER"
        )
    if not can_go_on:
        return
    recorded = config.output / CONFIG_FILE
    changed = differing_keys(load_recorded(recorded, type(config)), config)
    if changed:
        settings = ", ".join(f"{key}={old} (now {new})" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{recorded}: the run to resume was started with {settings}; give the same, or output=ANOTHER_FOLDER"
        )


def check_agreement(config: RunConfig, resume: bool, dist: DistContext) -> None:
    """Checks that all processes of a run were started alike.

    Raises:
        ConfigError: With what one of them has that the first has not.
    """
    versions = {name: version(name) for name in ("exfuse", "torch", "numpy", "pillow")}
    facts = shared_settings(config) | {"--resume": resume, "python": platform.python_version()} | versions
    if found := differences(facts, dist):
        raise ConfigError(f"the processes of this run differ: {found}; start all of them alike")


def check_data(facts: Mapping[str, object], dist: DistContext) -> None:
    """Checks that all processes of a run read the same data.

    Args:
        facts: What this process has read; see `differences`.
        dist: This process's place.

    Raises:
        DataError: With what one of them has that the first has not.
    """
    if found := differences(facts, dist):
        raise DataError(f"the processes of this run read other data: {found}; give all of them the same files")


def check_shards(config: RunConfig, dist: DistContext) -> None:
    """Checks that each process gets whole, equal pieces of a batch.

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
        model: A fresh network with a `backbone`.
        samples: In the training split.
        dist: This process's place.
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
