"""Signals that ask a run to stop: noted down, and obeyed after the iteration."""

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


class RankAgreement:
    """Exchange small numbers among all ranks over gloo, so that no rank waits for its GPU.

    Attributes:
        timeout: Seconds to wait for another rank; torch's own by default.
        seconds: About how often ``listen`` asks.
    """

    seconds = 1.0

    def __init__(self) -> None:
        self.timeout: float | None = None
        self._group: Any = None
        self._asked_at = 0.0
        self._unasked = 0  # iterations since then
        self._ask_after = 1  # iterations

    def agree(self, *numbers: int) -> list[int]:
        """Return the largest of each number over the ranks; called on all of them."""
        if dist.get_world_size() == 1:
            return list(numbers)
        if self._group is None:
            # A new group has torch's timeout, whatever the default group's is.
            timeout = timedelta(seconds=self.timeout) if self.timeout else None
            self._group = new_group(backend='gloo', timeout=timeout)
        values = torch.tensor(numbers, dtype=torch.int64)
        all_reduce(values, ReduceOp.MAX, group=self._group)
        return values.tolist()

    def listen(self, *numbers: int, at_once: bool) -> list[int]:
        """Return the largest of each number over the ranks every ``seconds``, else zeros.

        Called after each iteration on all ranks. An exchange each time would be the first thing
        that a thousand ranks wait for. After how many iterations the next one comes, the ranks
        agree on in the one before, so all come to it together.

        Args:
            *numbers: Of this rank.
            at_once: Whether to ask now in any case; the same on all ranks.
        """
        if dist.get_world_size() == 1:
            return list(numbers)
        self._unasked += 1
        if self._unasked < self._ask_after and not at_once:
            return [0] * len(numbers)
        now = time.monotonic()
        wished = int(self.seconds * self._unasked / (now - self._asked_at))
        *numbers, slowest = self.agree(*numbers, -wished)
        self._ask_after, self._unasked, self._asked_at = -slowest, 0, now
        return numbers
