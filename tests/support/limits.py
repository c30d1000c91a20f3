"""Limits of time and memory for a block of a test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def at_most(seconds: float, megabytes: int) -> Iterator[None]:
    """Checks how long the block computes, and by how much it raises the peak of this process's resident memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = memory("VmRSS"), time.process_time()
    yield
    assert time.process_time() - started < seconds
    assert memory("VmHWM") - before < megabytes * 2**20


def memory(key: str) -> int:
    """Returns one of the kernel's counts of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
