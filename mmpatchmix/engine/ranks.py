"""Compare what the ranks of a run are about to do; a difference is named before they start."""

import hashlib
import json
import os
import platform
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import mmengine
import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed import DistError, PrefixStore, distributed_c10d

import mmpatchmix
from mmpatchmix.compat.cpu_launcher import MEETING_SECONDS, open_store
from mmpatchmix.registry import HOOKS

# A run may differ in these from machine to machine.
OWN = ('data_root', 'ann_file', 'data_prefix', 'num_workers', 'persistent_workers', 'work_dir')

OWN += ('prefetch_factor', 'pin_memory', 'log_level', 'experiment_name')

DATA_SECONDS = 600  # a large folder on a slow disk

NUM_NAMES = 1000


def compare_ranks(cfg: Any) -> None:
    """Let all ranks report host, device, versions and config; under ``--launcher pytorch`` only.

    Args:
        cfg: The config of this rank.

    Raises:
        ValueError: Naming what differs, with the value of each rank.
        TimeoutError: Naming the ranks that did not report in time.
    """
    if cfg.get('launcher') != 'pytorch' or 'RANK' not in os.environ:
        return
    values = dict(_leaves(cfg))
    facts = {
        'where': f'{socket.gethostname()}, process {os.getpid()}, {get_device()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'mmengine': mmengine.__version__,
        'mmpatchmix': mmpatchmix.__version__,
        'device': get_device().split(':')[0],
        **values,
    }
    # Digests first: the facts of each rank, read by each rank, are gigabytes among a thousand.
    text = json.dumps({name: fact for name, fact in facts.items() if name != 'where'})
    reports = exchange('preflight', {'digest': hashlib.sha256(text.encode()).hexdigest()})
    if len({report['digest'] for report in reports}) > 1:
        _refuse_differences(exchange('what differs', facts))


def compare_data(dataset: Any) -> None:
    """Let all ranks report how many images they train on and, of up to 1,000, the names.

    Args:
        dataset: Of the train loader.

    Raises:
        ValueError: If they differ.
        TimeoutError: Naming the ranks that did not report in time.
    """
    if not torch.distributed.is_initialized() or 'MASTER_ADDR' not in os.environ:
        return
    if 'TORCHELASTIC_RUN_ID' not in os.environ:  # of other launchers
        return
    digest = hashlib.sha256()
    for index in range(0, len(dataset), max(1, len(dataset) // NUM_NAMES)):
        info: dict = {}
        with suppress(AttributeError, NotImplementedError):
            info = dataset.get_data_info(index)
        path = str(info.get('img_path', '')).replace(os.sep, '/')
        digest.update(f'{"/".join(path.split("/")[-2:])} {info.get("gt_label")}\n'.encode())
    facts = {
        'where': socket.gethostname(),
        'number of training images': len(dataset),
        'names of the training images (digest)': digest.hexdigest()[:12],
    }
    _refuse_differences(exchange('data', facts, DATA_SECONDS))


def _leaves(node: Any, path: str = '') -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values of a config, without what ranks may have of their own."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not hasattr(node, 'items'):
        yield path, repr(node)
        return
    for key, value in node.items():
        if key not in OWN:
            yield from _leaves(value, f'{path}.{key}' if path else str(key))


def _refuse_differences(reports: list[dict[str, Any]]) -> None:
    """Raise ``ValueError`` with every fact in which a rank differs from rank 0."""
    lines = []
    for name in dict.fromkeys(name for report in reports for name in report):
        values = [report.get(name, 'not set') for report in reports]
        if name == 'where' or len(set(map(json.dumps, values))) == 1:
            continue
        groups = {
            value: [r for r, other in enumerate(values) if other == value] for value in values
        }
        parts = [f'{value} on {_name_ranks(ranks, reports)}' for value, ranks in groups.items()]
        lines.append(f'{name}: {"; ".join(parts)}')
    if lines:
        raise ValueError(
            'the ranks are not about to do the same; start all of them with the same command, '
            'code and data:\n  ' + '\n  '.join(lines)
        )


def _name_ranks(ranks: list[int], reports: list[dict[str, Any]]) -> str:
    listed = ', '.join(map(str, ranks[:8])) + (f' and {len(ranks) - 8} more' if ranks[8:] else '')
    return f'rank {listed} ({reports[ranks[0]]["where"]})'


_num_exchanges: Counter[str] = Counter()


def exchange(
    topic: str, facts: Mapping[str, Any], seconds: float = MEETING_SECONDS
) -> list[dict[str, Any]]:
    """Tell all ranks something, and learn what they tell.

    Args:
        topic: What it is about. All ranks exchange the same topics equally often.
        facts: What JSON can hold.
        seconds: How long to wait for the others.

    Returns:
        list[dict]: The facts of every rank, by rank.

    Raises:
        TimeoutError: Naming the ranks that said nothing in time.
    """
    store, num_ranks = open_store(), int(os.environ['WORLD_SIZE'])
    _num_exchanges[topic] += 1
    names = [f'{topic}-{_num_exchanges[topic]}-{rank}' for rank in range(num_ranks)]
    store.set(names[int(os.environ['RANK'])], json.dumps(facts))
    deadline = time.monotonic() + seconds
    for name in names:
        left = max(deadline - time.monotonic(), 0.01)
        try:
            store.wait([name], timedelta(seconds=left))
        except DistError:
            break  # the deadline has passed
    there = {rank: store.check([name]) for rank, name in enumerate(names)}
    if not all(there.values()):
        late = ', '.join(str(rank) for rank, is_there in there.items() if not is_there)
        raise TimeoutError(
            f'{topic}: of {num_ranks} ranks {late} did not answer within {seconds:g} s. Look at '
            'what these processes printed, and at their machines.'
        )
    return [json.loads(store.get(name)) for name in names]


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
