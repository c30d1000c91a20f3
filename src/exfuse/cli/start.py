"""Where the command `exfuse` begins: imports little, so that a signal while the rest is imported ends it at once."""

import os
import sys
from pathlib import Path
from types import FrameType

from exfuse.training.signals import handle_signals


def main() -> None:
    """Runs the command line; see `exfuse.cli.app.main`."""
    # Libraries that are interrupted in the middle of an import raise errors of their own. Nothing is open yet.
    handle_signals(_leave_at_once)
    try:
        Path.cwd()  # without one, torch's MKL cannot be loaded and ends the process
    except FileNotFoundError:
        sys.exit("error: the current folder was removed; change to another one with cd, then run the command again")
    from exfuse.cli.app import main

    main()


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped before anything was done\n")
    os._exit(128 + number)
