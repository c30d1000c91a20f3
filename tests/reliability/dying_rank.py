"""`exfuse` of which one process dies once: MARKER RANK PLACE NUMBER exfuse's arguments.

PLACE is "batch", "backward" or "save", and NUMBER how many of them the process comes through before it.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from exfuse import atomic_io
from exfuse.cli.app import main
from exfuse.training import loop

marker, rank, place, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
del sys.argv[1:5]
WATCHED = {"batch": (loop, "_next_batch"), "backward": (torch.Tensor, "backward"), "save": (atomic_io, "sync_folder")}


def dying(function: Callable[..., Any]) -> Callable[..., Any]:
    passed = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal passed
        if passed == number and os.environ["RANK"] == rank and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1
        return function(*arguments, **named)

    return call


owner, name = WATCHED[place]
setattr(owner, name, dying(getattr(owner, name)))
main()
