"""Ctrl-C, SIGTERM and SIGHUP: the run saves its last finished step and ends; a second signal exits immediately."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Under torchrun, Ctrl-C arrives twice: from the terminal and from the launcher.
SAME_SIGNAL_SECONDS = 1.0


class StopRequested(BaseException):
    """A signal requested a stop; not an `Exception`, so that no handler on the way treats it as an error."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run can be resumed
    """A signal stopped the run.

    Attributes:
        step: The last saved step; 0 if the command has not saved any.
        exit_code: 128 plus the signal's number.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}" if step else "stopped before the first new step")
        self.step = step
        self.exit_code = 128 + number


class StopSignals:
    """Records the first signal, and raises `StopRequested` at once where no work can be left half done.

    Attributes:
        received: Number of the first signal; None before it.
        saved_step: The step of the last checkpoint of a finished run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.saved_step = 0
        self._received_at = 0.0
        self._alone = True
        self._interruptible = True  # until `begin`: before it, nothing can be lost

    def begin(self, alone: bool) -> None:
        """From now on, lets a signal raise `StopRequested` only inside `interruptible`.

        Args:
            alone: Whether this is the only process. Several processes must stop at the same step, so they only record
                the signal.
        """
        self._alone, self._interruptible = alone, False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal interrupt the block, which must not change any state before its end.

        Raises:
            StopRequested: If a signal arrives, or arrived before.
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
        # A signal to the whole process group, as launchers send it, also ends the data workers. That is expected, but
        # torch's handler would raise an error wherever the main thread is.
        signal.signal(signal.SIGCHLD, _do_nothing)
        if self._interruptible:
            raise StopRequested


def handle_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets a handler for `SIGNALS` and returns the previous handlers by number; under nohup, SIGHUP stays ignored."""
    before: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number in SIGNALS:
        if number in (signal.SIGINT, signal.SIGTERM) or before[number] != signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Ignores a signal."""


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handles `SIGNALS` within the block with `StopSignals`, and restores all handlers after it, including SIGCHLD's.

    Only the main thread can handle signals; in any other thread the block runs without handlers.

    Raises:
        Interrupted: If a signal arrives that the block does not handle, before there is anything to save or after
            everything is saved.
    """
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {signal.SIGCHLD: signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL} | handle_signals(stop.note)
    try:
        yield stop
        if stop.received is not None:  # it arrived after training, while the report was written
            raise Interrupted(stop.saved_step, stop.received)
    except StopRequested:
        raise Interrupted(0, stop.received or signal.SIGINT) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
