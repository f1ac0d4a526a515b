"""Says which rank the others wait for."""

import json
import os
import socket
import threading
import time
from collections import Counter
from typing import Any

from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed import PrefixStore, distributed_c10d

from mmpatchmix.registry import HOOKS

NUM_WATCHERS = 2  # the second one speaks where the first is silent itself
BEATS = 4  # in the time after which somebody is missed


@HOOKS.register_module()
class RankWatchHook(Hook):
    """Name a rank that is stopped, cut off, or somewhere else than the others.

    A thread of every rank tells, through the store in which they met, that it lives and what its
    rank is doing. Where nothing has moved for a while, the first rank logs who is silent and who
    does something else than most. It ends nothing: ``env_cfg.dist_cfg.timeout`` does. Does
    nothing in a run of one rank.

    Args:
        seconds: After which a rank is missed, above 0.

    Raises:
        ValueError: If ``seconds`` is not above 0.
    """

    def __init__(self, seconds: float = 60) -> None:
        if not seconds > 0:
            raise ValueError(f'rank_watch.seconds={seconds} must be above 0.')
        self.seconds = seconds
        self._over = threading.Event()
        self._state: tuple[int, str] = (0, 'starting')  # iteration, and what the rank does there

    def before_train(self, runner: Runner) -> None:
        """Begin to tell, and on the first ranks to watch."""
        if dist.get_world_size() > 1:
            store = PrefixStore('rank-watch', distributed_c10d._get_default_store())
            watch = Watch(store, dist.get_rank(), dist.get_world_size(), self.seconds)
            self._over.clear()
            watch.beat(self._state)  # a rank that stops at once is to be missed, too
            threading.Thread(target=self._run, args=(watch, runner.logger), daemon=True).start()

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note down that the batch is there."""
        self._state = (runner.iter, 'trains')

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note down that the step is over."""
        self._state = (runner.iter + 1, 'reads data')

    def before_val(self, runner: Runner) -> None:
        """Note down that an evaluation begins."""
        self._state = (runner.iter, 'evaluates')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note down that a checkpoint is written."""
        self._state = (runner.iter, 'saves')

    def after_train(self, runner: Runner) -> None:
        """Fall silent."""
        self._over.set()

    def _run(self, watch: 'Watch', logger: Any) -> None:
        while not self._over.wait(self.seconds / BEATS):
            try:
                message = watch.beat(self._state)
            except Exception:  # the store is gone, and with it the run
                return
            if message:
                logger.error(message)


class Watch:
    """What one rank tells the others, and the first ranks conclude from it.

    Args:
        store: Shared by all ranks.
        rank: Of this process.
        num_ranks: Of the run.
        seconds: After which a rank is missed.
    """

    def __init__(self, store: Any, rank: int, num_ranks: int, seconds: float) -> None:
        self.store, self.rank, self.num_ranks, self.seconds = store, rank, num_ranks, seconds
        self.place = f'{socket.gethostname()}, process {os.getpid()}'
        self.count = 0
        # By rank: the last beat, and since when it and what it tells are the same. Clocks of
        # machines differ, so the times are this one's.
        self.beats: dict[int, tuple[list, float, float]] = {}
        self.last_message = ''

    def beat(self, state: tuple[int, str]) -> str | None:
        """Tell the others what this rank does; return what there is to say about them, once."""
        self.count += 1
        self.store.set(f'{self.rank}', json.dumps([self.count, self.place, *state]))
        if self.rank >= NUM_WATCHERS:
            return None
        now = time.monotonic()
        for rank in range(self.num_ranks):
            if self.store.check([f'{rank}']):
                self._note(rank, json.loads(self.store.get(f'{rank}')), now)
        message = self._judge(now)
        if message == self.last_message:
            return None
        self.last_message = message
        return message or None

    def _note(self, rank: int, beat: list, now: float) -> None:
        former, beaten, moved = self.beats.get(rank, (None, now, now))
        if former is not None:
            beaten = beaten if former[0] == beat[0] else now
            moved = moved if former[2:] == beat[2:] else now
        self.beats[rank] = (beat, beaten, moved)

    def _judge(self, now: float) -> str:
        own = self.beats[self.rank]
        if now - own[2] < self.seconds:
            return ''  # it goes on
        silent = [r for r, (_, beaten, _) in self.beats.items() if now - beaten >= self.seconds]
        if any(rank not in silent for rank in range(self.rank)):
            return ''  # another one speaks
        if silent:
            return f'{self._name(silent)} gives no sign of life: stopped, or cut off.'
        states = {rank: tuple(beat[2:]) for rank, (beat, _, _) in self.beats.items()}
        most = Counter(states.values()).most_common(1)[0][0]
        others = [rank for rank, state in states.items() if state != most]
        if not others:
            return ''  # all of them: a long evaluation, a first compilation
        iteration, what = states[others[0]]
        return (
            f'{self._name(others)} {what} at iteration {iteration + 1} while the others wait '
            f'({most[1]}, iteration {most[0] + 1}).'
        )

    def _name(self, ranks: list[int]) -> str:
        listed = ', '.join(map(str, ranks[:8])) + (
            f' and {len(ranks) - 8} more' if ranks[8:] else ''
        )
        return (
            f'For {self.seconds:g} s nothing has moved: rank {listed} '
            f'({self.beats[ranks[0]][0][1]})'
        )
