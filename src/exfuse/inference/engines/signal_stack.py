"""Keeping a thread's signal stack."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's `stack_t`."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Puts back the stack on which this thread's signals are handled, whatever a library does to it meanwhile.

    OpenVINO's CPU plugin gives the thread a signal stack of its own and frees it when its last model is gone. Python
    handles signals on such a stack if there is one, so that Ctrl-C later on would end in a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    system, before = ctypes.CDLL(None), _Stack()
    system.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        system.sigaltstack(ctypes.byref(before), None)
