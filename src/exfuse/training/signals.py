"""Ctrl-C, SIGTERM and SIGHUP: the newest finished step is saved and the run ends; a second signal leaves at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Under torchrun a Ctrl-C arrives twice, from the terminal and from the launcher.
SAME_SIGNAL_SECONDS = 1.0


class StopRequested(BaseException):
    """A signal asked the run to stop; not an `Exception`, so that nothing on the way takes it for an error."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop and can go on
    """The run stopped at the wish of a signal.

    Attributes:
        step: The last step that was saved; 0 if none was since the command began.
        exit_code: 128 plus the signal's number.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}" if step else "stopped before training went on")
        self.step = step
        self.exit_code = 128 + number


class StopSignals:
    """Notes the first signal, and acts on it at once where nothing can be half done.

    Attributes:
        received: Number of the first signal; None before it.
        saved_step: The step of the last checkpoint of a finished run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.saved_step = 0
        self._received_at = 0.0
        self._alone = True
        self._interruptible = True  # until `begin`, when there is something to lose

    def begin(self, alone: bool) -> None:
        """Says that from now on a signal may only be acted on where the loop allows it.

        Args:
            alone: Whether this is the only process. Several must stop at the same place, so theirs only note a signal.
        """
        self._alone, self._interruptible = alone, False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal end the block, which must not have changed anything before its end.

        Raises:
            StopRequested: If a signal comes, or has come.
        """
        self._interruptible = self._alone
        if self._alone and self.received is not None:
            raise StopRequested
        try:
            yield
        finally:
            self._interruptible = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        now = time.monotonic()
        if self.received is not None:
            if "LOCAL_RANK" in os.environ and now - self._received_at < SAME_SIGNAL_SECONDS:
                return
            os._exit(128 + number)
        self.received, self._received_at = number, now
        # A signal to all of a group of processes, as launchers send it, ends the data workers, too: no news then, and
        # torch's handler would raise wherever the main thread is.
        signal.signal(signal.SIGCHLD, _do_nothing)
        if self._interruptible:
            raise StopRequested


def handle_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Gives a handler to `SIGNALS` and returns those they had, by number; under nohup SIGHUP stays ignored."""
    before: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number in SIGNALS:
        if number in (signal.SIGINT, signal.SIGTERM) or before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Handles a signal."""


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handles `SIGNALS` within the block as `StopSignals` says; what the block makes of SIGCHLD ends with it.

    Python hands signals to the main thread; in another one the block runs without. A signal that comes before there is
    anything to save ends the block with `Interrupted`.
    """
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {signal.SIGCHLD: signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL} | handle_signals(stop.note)
    try:
        yield stop
        if stop.received is not None:  # it came when all was saved, and only pages were being written
            raise Interrupted(stop.saved_step, stop.received)
    except StopRequested:
        raise Interrupted(0, stop.received or signal.SIGINT) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
