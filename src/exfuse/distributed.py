"""The differences between running in one process and in several."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn

from exfuse.errors import ConfigError, ProcessError, brief

NAMED = 5  # differences listed in a message


@dataclass(frozen=True)
class DistContext:
    """This process's place among the processes of a run.

    Attributes:
        rank: 0 to size - 1.
        size: Number of processes.
        device: The device that this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def is_main_process() -> bool:
    """Returns whether this process has rank 0; True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def only_process(command: str) -> DistContext:
    """Returns the context of a command that runs in a single process.

    Raises:
        ConfigError: If torchrun started several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{command} runs in one process; start it without torchrun")
    return DistContext(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def process_group() -> Iterator[DistContext]:
    """Joins the process group that torchrun set up (gloo on CPUs, nccl on GPUs); without torchrun there is none.

    Raises:
        ProcessError: If another process can no longer be reached; with the error that ended it, if known.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if "RANK" not in os.environ:
        yield DistContext(0, 1, device)
        return
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, size = next(torch.distributed.rendezvous("env://"))  # type: ignore[attr-defined]
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # When torchrun restarts the processes, its store still contains the addresses of the old ones. On several
        # machines the restart count may differ; they need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 instead.
        store = torch.distributed.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size
    )
    try:
        yield DistContext(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    except Exception as error:
        reasons = [f"{attempt}: why rank {other} stopped" for other in range(size)]  # keys of the store
        if size == 1 or not _is_lost_process(error):
            with suppress(RuntimeError):  # the store may be gone
                store.set(reasons[rank], f"rank {rank} stopped: {brief(error)}")
            raise
        message = ""
        with suppress(RuntimeError):
            message = "; ".join(store.get(key).decode() for key in reasons if store.check([key]))
        raise ProcessError(
            message or f"another process of this run is gone or does not answer ({brief(error)})"
        ) from error
    finally:
        torch.distributed.destroy_process_group()


def all_reduce_sum(values: torch.Tensor, dist: DistContext) -> torch.Tensor:
    """Returns the element-wise sum of all processes' tensors, on every process."""
    if dist.size == 1:
        return values
    total = values.to(dist.device)
    torch.distributed.all_reduce(total)
    return total.to(values.device)


def _is_lost_process(error: Exception) -> bool:
    """Returns whether an error means that this process could not reach another one of the group."""
    is_of_torch = isinstance(error, RuntimeError)  # other errors may contain "gloo" in the name of a file
    return is_of_torch and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error))


def broadcast_module(module: nn.Module, dist: DistContext) -> None:
    """Overwrites a module's parameters and buffers with those of rank 0."""
    if dist.size > 1:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            torch.distributed.broadcast(tensor.data, src=0)


def differences(facts: Mapping[str, object], dist: DistContext) -> str:
    """Returns in words which processes differ from rank 0, and in which facts; empty if all agree.

    Every process must call this at the same point, and gets the same answer.

    Args:
        facts: Name -> value, compared as text.
        dist: This process's context.
    """
    first, *others = (
        json.loads(text) for text in _texts_of_all(json.dumps({k: str(v) for k, v in facts.items()}), dist)
    )
    found = [
        f"rank {rank} has {name} {other.get(name)} and rank 0 {first.get(name)}"
        for rank, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    return "; ".join(found[:NAMED]) + f"; and {len(found) - NAMED} more" * (len(found) > NAMED)


def _texts_of_all(text: str, dist: DistContext) -> list[str]:
    """Returns the texts of all processes by rank, on every process."""
    content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = torch.zeros(dist.size, dtype=torch.int64)
    sizes[dist.rank] = len(content)
    sizes = all_reduce_sum(sizes, dist)
    contents = torch.zeros(dist.size, int(sizes.max()), dtype=torch.uint8)
    contents[dist.rank, : len(content)] = content
    rows = zip(all_reduce_sum(contents, dist), sizes.tolist(), strict=True)
    return [row[:size].numpy().tobytes().decode() for row, size in rows]


def any_across_ranks(flag: bool, dist: DistContext) -> bool:
    """Returns whether the flag is set on any process; the same answer on all of them."""
    return bool(all_reduce_sum(torch.tensor(int(flag)), dist))


def barrier(dist: DistContext) -> None:
    """Waits until every process has reached this call."""
    if dist.size > 1:
        torch.distributed.barrier()
