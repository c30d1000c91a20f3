"""What a process has that a library must leave as it found it."""

import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import signal_handling

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def process_state() -> dict[str, Any]:
    """Returns what can be compared of this process, by name."""
    gc.collect()
    loggers = [logging.root, *(item for item in logging.root.manager.loggerDict.values() if hasattr(item, "level"))]
    return {
        "signal handlers": {number: signal.getsignal(number) for number in HANDLED},
        "torch notes its handler": signal_handling._SIGCHLD_handler_set,
        "torch's generator": torch.get_rng_state().tolist(),
        "NumPy's generator": repr(np.random.get_state()[1:]),
        "Python's generator": random.getstate(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "autograd": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "warnings.filters": list(warnings.filters),
        "os.environ": dict(os.environ),
        "folder": Path.cwd(),
        "levels of loggers": {logger.name: logger.level for logger in loggers},
        "handlers of loggers": {logger.name: list(logger.handlers) for logger in loggers},
        "excepthook": sys.excepthook,
        "open files": _open_files(),
    }


def _open_files() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(found)


def _differing(before: Any, after: Any) -> Any:
    """Returns what changed. Loggers that a first import brings are no change of what was there."""
    if not isinstance(before, dict):
        return None if before == after else (before, after)
    return {key: (value, after.get(key)) for key, value in before.items() if value != after.get(key)} or None


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Fails if the block leaves the process other than it was, also if the block raises.

    Much is set once in a process, when something is first imported or used: only a fresh process shows it all.
    """
    before = process_state()
    try:
        yield
    finally:
        after = process_state()
        changed = {name: _differing(value, after[name]) for name, value in before.items()}
        new = sorted(after["os.environ"].keys() - before["os.environ"].keys())
        assert {name: value for name, value in changed.items() if value is not None} == {}
        assert new == []
