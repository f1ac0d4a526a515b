"""Signals that stop a run, and the exchange of stop and save requests between ranks."""

import os
import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from mmengine import dist
from torch.distributed import ReduceOp, all_reduce, new_group

# Sent by Slurm and other schedulers, closed terminals and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def exit_code(number: int) -> int:
    """Return the exit code after a signal: EX_TEMPFAIL (run again), or 130 after Ctrl-C."""
    return 130 if number == signal.SIGINT else os.EX_TEMPFAIL


class StopSignals:
    """Store the first signal as ``received``, 0 before; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = self._process = 0
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Replace the signal handlers; does nothing outside of the main thread."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._process = os.getpid()
            self._previous = {number: signal.signal(number, self._store) for number in SIGNALS}

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _store(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked data worker: schedulers signal whole process groups, and the current
            # iteration still needs the worker. A second SIGTERM ends it.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
        elif number == signal.SIGINT and self.received == number:
            raise KeyboardInterrupt
        else:
            self.received = number


class RankAgreement:
    """Exchange small numbers among all ranks over gloo, without synchronising with GPUs.

    An exchange fails after ``timeout`` seconds; :meth:`listen` exchanges about every ``seconds``.
    """

    seconds = 1.0
    timeout: float | None = None
    _group: Any = None
    _exchanged_at = 0.0
    _count, _interval = 0, 1  # iterations since the last exchange, and until the next

    def agree(self, *numbers: int) -> list[int]:
        """Return the maximum of each number over the ranks; called on all of them."""
        if dist.get_world_size() == 1:
            return list(numbers)
        if self._group is None:
            # A new group has torch's timeout, not that of the default group.
            timeout = timedelta(seconds=self.timeout) if self.timeout else None
            self._group = new_group(backend='gloo', timeout=timeout)
        values = torch.tensor(numbers, dtype=torch.int64)
        all_reduce(values, ReduceOp.MAX, group=self._group)
        return values.tolist()

    def listen(self, *numbers: int, at_once: bool) -> list[int]:
        """Return the maximum of each number over the ranks about once a second, else zeros.

        Called after each iteration on all ranks. ``at_once``, equal on all ranks, exchanges now.
        """
        if dist.get_world_size() == 1:
            return list(numbers)
        self._count += 1
        if self._count < self._interval and not at_once:
            return [0] * len(numbers)
        now = time.monotonic()
        own_interval = int(self.seconds * self._count / (now - self._exchanged_at))
        *numbers, slowest = self.agree(*numbers, -own_interval)
        self._interval, self._count, self._exchanged_at = -slowest, 0, now
        return numbers
