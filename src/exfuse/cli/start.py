"""Entry point of the command `exfuse`; imports little, so that a signal during further imports exits at once."""

import os
import sys
from pathlib import Path
from types import FrameType

from exfuse.training.signals import handle_signals


def main() -> None:
    """Runs the command line; see `exfuse.cli.app.main`."""
    # Libraries that are interrupted during an import raise their own errors; exiting is safe, as nothing is open yet.
    handle_signals(_leave_at_once)
    try:
        Path.cwd()  # if it does not exist, loading torch's MKL fails and kills the process
    except FileNotFoundError:
        sys.exit("error: the current folder was removed; change to another one with cd, then run the command again")
    from exfuse.cli.app import main

    main()


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped by a signal\n")  # it may also come while Python exits, when all is done
    os._exit(128 + number)
