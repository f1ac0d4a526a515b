"""What one rank has heard, all ranks do."""

import time
from datetime import timedelta
from typing import Any

import torch
from mmengine import dist
from torch.distributed import ReduceOp, all_reduce, new_group


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
