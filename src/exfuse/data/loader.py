"""The reproducible sequence of training batches.

The n-th sample of a run is determined by the seed alone: each epoch is a permutation drawn from (seed, epoch), the
epochs are concatenated, and each batch is the next `batch_size` samples, divided into equal shards for the ranks. The
number of workers or ranks changes nothing, and resuming needs only the step.
"""

import ctypes
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import wraps
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from exfuse.data.samples import UInt8Array
from exfuse.errors import DataError, brief

# If a batch takes longer than this, its worker is considered dead.
WORKER_SECONDS = 120
SAMPLES_NAMED = 20  # samples listed in a message
PREFETCH_FACTOR = 2  # batches that each worker reads ahead (torch's default)
PR_SET_PDEATHSIG = 1  # Linux's prctl option for the signal that is sent when the parent dies
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only its free space is read


class SampleKey(NamedTuple):
    """A sample in an epoch; with the seed, it determines the augmentation."""

    epoch: int
    sample: int


class Batch(NamedTuple):
    """Samples collated on the host.

    Attributes:
        images: uint8 `(N, 3, H, W)`.
        targets: Masks, uint8 `(N, H, W)`, or classes, int64 `(N,)`.
        keys: int64 `(N, 2)`: epoch and index of each sample.
    """

    images: Tensor
    targets: Tensor
    keys: Tensor


class ResumableBatchSampler(Sampler[list[SampleKey]]):
    """Yields the keys of one rank's shard of each batch.

    Args:
        dataset_size: Number of samples in the data set.
        batch_size: Number of samples in a batch over all ranks, a multiple of the number of ranks.
        first_step: Number of batches to skip at the start.
        last_step: Step to stop at (exclusive).
        seed: Determines the order.
        rank: Index of the shard.
        num_replicas: Number of shards.
    """

    def __init__(
        self,
        dataset_size: int,
        batch_size: int,
        first_step: int,
        last_step: int,
        seed: int,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.dataset_size = dataset_size
        self.batch_size = batch_size
        self.steps = range(first_step, last_step)
        self.seed = seed
        self.shard = range(rank * batch_size // num_replicas, (rank + 1) * batch_size // num_replicas)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order_of, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            keys = []
            for place in self.shard:
                epoch, position = divmod(step * self.batch_size + place, self.dataset_size)
                if epoch != order_of:
                    order_of, order = (
                        epoch,
                        np.random.default_rng((self.seed, epoch)).permutation(self.dataset_size),
                    )
                keys.append(SampleKey(epoch, int(order[position])))
            yield keys


class LabelledImage(Protocol):
    """An image and its training target."""

    @property
    def image(self) -> UInt8Array:
        """RGB, uint8, `(H, W, 3)`."""

    @property
    def target(self) -> npt.NDArray[np.integer]:
        """A mask `(H, W)`, or a class as an array without dimensions."""


SampleType = TypeVar("SampleType", bound=LabelledImage)
AnySample = TypeVar("AnySample", bound=LabelledImage, covariant=True)


class LabelledImages(Protocol[AnySample]):
    """Labelled images by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnySample: ...

    def image_path(self, index: int) -> Path:
        """Returns the path of an image."""


class AugmentedDataset(Dataset[Batch], Generic[SampleType]):
    """A data set indexed by `SampleKey`; each sample is augmented by a generator seeded with (seed, epoch, index)."""

    def __init__(
        self,
        dataset: LabelledImages[SampleType],
        augmentation: Callable[[SampleType, np.random.Generator], SampleType],
        seed: int,
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> Batch:
        """Returns one augmented sample as a batch without the batch dimension."""
        rng = np.random.default_rng((self.seed, key.epoch, key.sample))
        sample = self.augmentation(self.dataset[key.sample], rng)
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        return Batch(image, torch.from_numpy(sample.target), torch.tensor(key))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed for everything random in a step except its samples."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def training_loader(dataset: AugmentedDataset[Any], order: ResumableBatchSampler, workers: int) -> Generator[Batch]:
    """Yields host batches in the given order, read by `workers` processes (0: by this one).

    Raises:
        DataError: If a file can no longer be read, or a worker process died or hangs; the message lists its samples.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        worker_init_fn=_set_up_worker,
        pin_memory=torch.cuda.is_available(),
        timeout=WORKER_SECONDS if workers else 0,
    )
    batches = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        _raise_once()
    for place in range(len(order)):
        try:
            yield next(batches)
        except DataError as error:
            # A worker's message is preceded by its traceback.
            raise DataError(str(error).strip().rpartition("DataError: ")[2]) from error
        except (RuntimeError, OSError, EOFError) as error:
            if not workers:
                raise
            ahead = islice(order, place, place + PREFETCH_FACTOR * workers + 1)
            raise worker_error(error, dataset, ahead) from error


def _raise_once() -> None:
    """Makes torch raise for the first dead worker only, and not again while that error is being handled."""
    torch_handler = signal.getsignal(signal.SIGCHLD)
    torch_handler = getattr(torch_handler, "__wrapped__", torch_handler)
    if not callable(torch_handler):
        return
    raised = False

    @wraps(torch_handler)
    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if raised:
            return
        try:
            torch_handler(number, frame)
        except RuntimeError:
            raised = True
            raise

    signal.signal(signal.SIGCHLD, handle)


def is_worker_failure(error: RuntimeError) -> bool:
    """Returns whether an error of torch means that a worker process died or hangs."""
    return "DataLoader" in str(error)


def worker_error(error: Exception, dataset: AugmentedDataset[Any], batches: Iterable[list[SampleKey]]) -> DataError:
    """Returns the error to raise when a worker process failed.

    Args:
        error: Raised by torch.
        dataset: The data set being read.
        batches: The batches that the process may have been reading.
    """
    keys = [key for batch in batches for key in batch]
    paths = [str(dataset.dataset.image_path(key.sample)) for key in keys[:SAMPLES_NAMED]]
    samples = ", ".join(paths) + (f" and {len(keys) - SAMPLES_NAMED} more" * (len(keys) > SAMPLES_NAMED))
    text, whole = brief(error), str(error)
    hint = "set data.workers=0 to read in the training process itself"
    if any(sign in whole for sign in ("shared memory", "Bus error", "/torch_")):
        free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
        hint = f"shared memory is too small: {free:,} bytes free in {SHARED_MEMORY}; use fewer data.workers"
    return DataError(f"a worker process failed while reading one of the samples {samples}: {text} ({hint})")


def _set_up_worker(worker: int) -> None:
    # Terminals and torchrun send signals to whole process groups, but only the training process should react to them.
    # Each worker therefore has its own process group, and is killed when the training process ends.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in {"SIGINT", "SIGHUP"} & set(dir(signal)):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
