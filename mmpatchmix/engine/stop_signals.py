"""Signals that ask a run to stop: noted down, and obeyed after the iteration."""

import os
import signal
import threading
from types import FrameType

# What Slurm, other schedulers, closed terminals and Ctrl-C send.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
# sysexits.h's EX_TEMPFAIL, "try again": tools/slurm_train.sh does.
EXIT_AGAIN, EXIT_INTERRUPTED = 75, 130


class StopSignals:
    """Note down the first signal; a second Ctrl-C interrupts at once.

    Attributes:
        received: Number of the signal, 0 before there is one.
    """

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[int, object] = {}
        self._process = 0

    def install(self) -> None:
        """Take over from the present handlers; only the main thread may."""
        if threading.current_thread() is threading.main_thread() and not self._former:
            self._process = os.getpid()
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A data worker, forked: schedulers signal whole process groups, and the iteration
            # under way still needs it. A second SIGTERM is meant for itself.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
        elif number == signal.SIGINT and self.received == number:
            raise KeyboardInterrupt
        else:
            self.received = number


def exit_code(number: int) -> int:
    """Return the exit code after a signal: whether to run again."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_AGAIN
