"""Restores the state of the calling process, however training ends."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from torch.utils.data._utils import signal_handling

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
HANDLES_CHILDREN = "_SIGCHLD_handler_set"


@contextmanager
def process_as_before() -> Iterator[None]:
    """Restores torch's random generators, and the process-wide state that its optimizers and loaders change.

    `stop_signals` restores signal handlers. torch sets its handler for data workers only once and records that in a
    flag; the flag is restored here, so that torch sets the handler again.
    """
    _import_compiler()
    handles_children = getattr(signal_handling, HANDLES_CHILDREN, False)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        setattr(signal_handling, HANDLES_CHILDREN, handles_children)


def _import_compiler() -> None:
    """Imports the compiler, as torch's optimizers do at their first step, and undoes its changes.

    The import sets a warning filter and an environment variable.
    """
    before = os.environ.get(CACHE_VARIABLE)
    with warnings.catch_warnings():
        import_module("torch._dynamo")
    if before is None:
        os.environ.pop(CACHE_VARIABLE, None)
