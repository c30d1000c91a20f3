from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from exfuse.data.datasets import open_dataset
from exfuse.data.loader import (
    SHARED_MEMORY,
    AugmentedDataset,
    Batch,
    ResumableBatchSampler,
    SampleKey,
    training_loader,
    worker_error,
)
from support.loading import AUGMENTATION, assert_same_batches


def keys_of(dataset_size: int, batch_size: int, steps: int, seed: int = 0) -> list[SampleKey]:
    return [key for batch in ResumableBatchSampler(dataset_size, batch_size, 0, steps, seed) for key in batch]


def load(pack: Path, first_step: int = 0, workers: int = 0, rank: int = 0, num_replicas: int = 1) -> list[Batch]:
    dataset = open_dataset(pack, "train")
    order = ResumableBatchSampler(len(dataset), 4, first_step, 4, seed=7, rank=rank, num_replicas=num_replicas)
    return list(training_loader(AugmentedDataset(dataset, AUGMENTATION, seed=7), order, workers))


@pytest.mark.parametrize(("dataset_size", "batch_size", "steps"), [(10, 4, 10), (12, 4, 9), (3, 8, 6), (7, 1, 14)])
def test_every_sample_comes_exactly_once_an_epoch(dataset_size: int, batch_size: int, steps: int):
    keys = keys_of(dataset_size, batch_size, steps)
    epochs = steps * batch_size // dataset_size
    assert epochs * dataset_size == len(keys)
    for epoch in range(epochs):
        assert sorted(key.sample for key in keys if key.epoch == epoch) == list(range(dataset_size))
    assert all(former.epoch <= latter.epoch for former, latter in pairwise(keys))


def test_epochs_have_orders_of_their_own():
    keys = keys_of(20, 5, 12)
    orders = [[key.sample for key in keys if key.epoch == epoch] for epoch in range(3)]
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]
    assert list(range(20)) not in orders


def test_the_order_is_a_function_of_the_seed():
    assert keys_of(20, 5, 12, seed=1) == keys_of(20, 5, 12, seed=1)
    assert keys_of(20, 5, 12, seed=1) != keys_of(20, 5, 12, seed=2)


def test_the_batch_size_does_not_change_the_order():
    assert keys_of(10, 2, 20) == keys_of(10, 8, 5)


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_the_shares_of_the_ranks_are_the_batch_of_one_rank(num_replicas: int):
    whole = list(ResumableBatchSampler(10, 8, 0, 7, seed=3))
    shards = [
        list(ResumableBatchSampler(10, 8, 0, 7, seed=3, rank=rank, num_replicas=num_replicas))
        for rank in range(num_replicas)
    ]
    assert len(whole) == 7
    for step, batch in enumerate(whole):
        assert all(len(shard[step]) == 8 // num_replicas for shard in shards)
        assert [key for shard in shards for key in shard[step]] == batch


@pytest.mark.parametrize("first_step", [0, 1, 4, 6, 7])
def test_starting_later_gives_exactly_the_tail(first_step: int):
    whole = list(ResumableBatchSampler(10, 4, 0, 7, seed=3))
    tail = ResumableBatchSampler(10, 4, first_step, 7, seed=3)
    assert list(tail) == whole[first_step:]
    assert len(tail) == 7 - first_step


def test_an_order_can_be_read_again():
    order = ResumableBatchSampler(10, 4, 1, 7, seed=3)
    assert list(order) == list(order)


def test_a_batch_holds_bytes_and_the_keys_of_its_samples(pack: Path):
    batches = load(pack)
    keys = list(ResumableBatchSampler(12, 4, 0, 4, seed=7))
    assert len(batches) == 4
    for batch, expected in zip(batches, keys, strict=True):
        assert (batch.images.shape, batch.images.dtype) == ((4, 3, 64, 96), torch.uint8)
        assert (batch.targets.shape, batch.targets.dtype) == ((4, 64, 96), torch.uint8)
        assert batch.keys.dtype == torch.int64
        assert batch.keys.tolist() == [list(key) for key in expected]


def test_a_batch_holds_the_augmented_samples_of_its_keys(pack: Path):
    dataset = open_dataset(pack, "train")
    batch = load(pack)[2]
    for image, mask, (epoch, index) in zip(batch.images, batch.targets, batch.keys.tolist(), strict=True):
        expected = AUGMENTATION(dataset[index], np.random.default_rng((7, epoch, index)))
        np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), expected.image)
        np.testing.assert_array_equal(mask.numpy(), expected.mask)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_are_the_same_for_any_number_of_workers(pack: Path, workers: int):
    assert_same_batches(load(pack, workers=workers), load(pack))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("first_step", [1, 2, 3])
def test_batches_after_a_restart_are_the_same(pack: Path, first_step: int, workers: int):
    assert_same_batches(load(pack, first_step, workers), load(pack)[first_step:])


def test_batches_of_two_ranks_are_those_of_one(pack: Path):
    left, right = load(pack, rank=0, num_replicas=2), load(pack, rank=1, num_replicas=2)
    joined = [Batch(*map(torch.cat, zip(*pair, strict=True))) for pair in zip(left, right, strict=True)]
    assert_same_batches(joined, load(pack))


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", str(SHARED_MEMORY)),
        ("unable to write to file </torch_7_3>: No space left on device (28)", str(SHARED_MEMORY)),
        ("unable to allocate shared memory(shm) for file", str(SHARED_MEMORY)),
        ("Caught RuntimeError in DataLoader worker process 0.\n" + "  File x\n" * 90 + "Bus error", str(SHARED_MEMORY)),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", "data.workers=0"),
    ],
)
def test_a_failed_worker_names_samples_and_what_to_do(pack: Path, said: str, hint: str):
    dataset = AugmentedDataset(open_dataset(pack, "train"), AUGMENTATION, seed=7)
    error = str(worker_error(RuntimeError(said), dataset, [[SampleKey(0, 3)], [SampleKey(0, 5)]]))
    assert [fact for fact in (str(SHARED_MEMORY), "data.workers=0") if fact in error] == [hint]
    assert "train_0003.jpg" in error
    assert "train_0005.jpg" in error
