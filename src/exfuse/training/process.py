"""The process that calls us is left as it was, however training ends."""

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
    """Puts back torch's generators, and what torch changes for the whole process at its first optimizer and loader.

    Signal handlers are put back by `stop_signals`. torch sets the one for its data workers once and notes that it did;
    with the handler, this note is put back as well.
    """
    _import_compiler()
    handles_children = getattr(signal_handling, HANDLES_CHILDREN, False)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        setattr(signal_handling, HANDLES_CHILDREN, handles_children)


def _import_compiler() -> None:
    """Imports what torch's optimizers import at their first step, without the filter and the variable that it sets."""
    before = os.environ.get(CACHE_VARIABLE)
    with warnings.catch_warnings():
        import_module("torch._dynamo")
    if before is None:
        os.environ.pop(CACHE_VARIABLE, None)
