"""Check that all ranks have the same config and data, and report ranks that hang in training."""

import hashlib
import json
import os
import platform
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
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

# Config keys that may differ between machines.
LOCAL_KEYS = {
    'ann_file', 'data_prefix', 'data_root', 'experiment_name', 'log_level', 'num_workers',
    'persistent_workers', 'pin_memory', 'prefetch_factor', 'work_dir',
}  # fmt: skip
DATA_SECONDS = 600  # timeout for reading a large folder from a slow disk
NUM_NAMES = 1000  # images whose names are compared

_num_exchanges: Counter[str] = Counter()


def compare_ranks(cfg: Any) -> None:
    """Compare device, versions and config of all ranks; only with ``--launcher pytorch``.

    Raises ``ValueError`` with the value of each rank, ``TimeoutError`` with the missing ranks.
    """
    if cfg.get('launcher') != 'pytorch' or 'RANK' not in os.environ:
        return
    facts = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'mmengine': mmengine.__version__,
        'mmpatchmix': mmpatchmix.__version__,
        'device': get_device().split(':')[0],
    } | flatten(cfg.to_dict(), LOCAL_KEYS)
    # Digests first: exchanging all facts among a thousand ranks would be gigabytes.
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    reports = exchange('preflight', {'digest': digest})
    if len({report['digest'] for report in reports}) > 1:
        _refuse_differences('differences', facts)


def call_on_first_rank(function: Callable, *args: Any) -> Any:
    """Return the result of a function that the first rank calls, or raise its error, on all."""
    outcome: list[Any] = [None, None]  # result and error
    if dist.is_main_process():
        try:
            outcome[0] = function(*args)
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def compare_data(dataset: Any) -> None:
    """Compare number and up to 1,000 names of training images; errors as :func:`compare_ranks`."""
    launched = {'MASTER_ADDR', 'TORCHELASTIC_RUN_ID'} <= os.environ.keys()  # by torchrun
    if not torch.distributed.is_initialized() or not launched:
        return
    digest = hashlib.sha256()
    for index in range(0, len(dataset), max(1, len(dataset) // NUM_NAMES)):
        info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
        path = '/'.join(Path(info.get('img_path') or '').parts[-2:])
        text = f'{path} {info.get("gt_label")}\n'
        digest.update(text.encode(errors='surrogateescape'))
    names = {'names of the training images (digest)': digest.hexdigest()[:12]}
    _refuse_differences('data', {'number of training images': len(dataset)} | names, DATA_SECONDS)


def flatten(node: Any, left_out: Collection[str], prefix: str = '') -> dict[str, str]:
    """Return the values below a config node by their dotted keys, as Python source."""
    if isinstance(node, dict) and node:
        parts = node.items()
    elif isinstance(node, list | tuple) and any(isinstance(part, dict) for part in node):
        parts = enumerate(node)
    else:
        return {prefix: repr(list(node) if isinstance(node, tuple) else node)}
    flat: dict[str, str] = {}
    for key, value in parts:
        if key not in left_out:
            flat |= flatten(value, left_out, f'{prefix}.{key}' if prefix else str(key))
    return flat


def _refuse_differences(topic: str, facts: dict, seconds: float = MEETING_SECONDS) -> None:
    """Exchange facts and raise ``ValueError`` if they differ between ranks."""
    reports = exchange(topic, {'where': _name_process(), 'facts': facts}, seconds)
    lines = ''
    for name in dict.fromkeys(name for report in reports for name in report['facts']):
        ranks: dict[str, list[int]] = {}
        for rank, report in enumerate(reports):
            ranks.setdefault(str(report['facts'].get(name, 'not set')), []).append(rank)
        if len(ranks) > 1:
            parts = (f'{v} on {_name_ranks(r, reports[r[0]]["where"])}' for v, r in ranks.items())
            lines += f'\n  {name}: {"; ".join(parts)}'
    if lines:
        message = 'the ranks differ; start all of them with the same command, code and data:'
        raise ValueError(message + lines)


def _name_process() -> str:
    return f'{socket.gethostname()}, process {os.getpid()}'


def _name_ranks(ranks: list[int], where: str) -> str:
    more = f' and {len(ranks) - 8} more' if ranks[8:] else ''
    return f'rank {", ".join(map(str, ranks[:8]))}{more} ({where})'


def exchange(topic: str, facts: dict, seconds: float = MEETING_SECONDS) -> list[dict[str, Any]]:
    """All-gather JSON data through the store of the launcher, before a process group exists.

    Called on all ranks. Returns the facts of every rank, by rank; raises ``TimeoutError`` with the
    ranks that do not answer within ``seconds``.
    """
    store, num_ranks = open_store(), int(os.environ['WORLD_SIZE'])
    _num_exchanges[topic] += 1
    names = [f'{topic}-{_num_exchanges[topic]}-{rank}' for rank in range(num_ranks)]
    store.set(names[int(os.environ['RANK'])], json.dumps(facts))
    deadline = time.monotonic() + seconds
    with suppress(DistError):  # the deadline has passed
        for name in names:
            store.wait([name], timedelta(seconds=max(deadline - time.monotonic(), 0.01)))
    late = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
    if late:
        raise TimeoutError(
            f'{topic}: of {num_ranks} ranks {", ".join(late)} did not answer within {seconds:g} s. '
            'Check the output of these processes, and their machines.'
        )
    return [json.loads(store.get(name)) for name in names]


@HOOKS.register_module()
class RankWatchHook(Hook):
    """Log which rank is stopped, disconnected, or in another place than the others.

    A thread of every rank writes its state to the store of the process group. If no rank makes
    progress for ``seconds`` (above 0), the first rank logs which ranks are silent or differ.
    """

    def __init__(self, seconds: float = 60) -> None:
        if not seconds > 0:
            raise ValueError(f'rank_watch.seconds={seconds} must be above 0.')
        self.seconds = seconds
        self._over = threading.Event()
        self._state: tuple[int, str] = (0, 'starting')  # iteration and activity

    def before_train(self, runner: Runner) -> None:
        """Start the thread."""
        if (num_ranks := dist.get_world_size()) > 1:
            store = PrefixStore('rank-watch', distributed_c10d._get_default_store())
            watch = Watch(store, dist.get_rank(), num_ranks, self.seconds)
            self._over.clear()
            watch.beat(self._state)  # to detect also a rank that stops at once
            threading.Thread(target=self._run, args=(watch, runner.logger), daemon=True).start()

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        self._state = (runner.iter, 'trains')

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        self._state = (runner.iter + 1, 'reads data')

    def before_val(self, runner: Runner) -> None:  # noqa: D102
        self._state = (runner.iter, 'evaluates')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:  # noqa: D102
        self._state = (runner.iter, 'saves')

    def after_train(self, runner: Runner) -> None:  # noqa: D102
        self._over.set()

    def _run(self, watch: 'Watch', logger: Any) -> None:
        with suppress(Exception):  # the store is closed at the end of the run
            while not self._over.wait(self.seconds / 4):
                if message := watch.beat(self._state):
                    logger.error(message)


class Watch:
    """States of all ranks, written to a shared store and compared by the first two ranks."""

    def __init__(self, store: Any, rank: int, num_ranks: int, seconds: float) -> None:
        self.store, self.rank, self.num_ranks, self.seconds = store, rank, num_ranks, seconds
        self.count, self.last_message = 0, ''
        # By rank: last beat, times of the last beat and change of state by this machine's clock.
        self.beats: dict[int, tuple[list, float, float]] = {}

    def beat(self, state: tuple[int, str]) -> str | None:
        """Write the state of this rank; return a new message about other ranks, if any."""
        self.count += 1
        self.store.set(f'{self.rank}', json.dumps([self.count, _name_process(), *state]))
        if self.rank > 1:  # rank 1 reports if rank 0 is silent
            return None
        now = time.monotonic()
        for rank in (r for r in range(self.num_ranks) if self.store.check([f'{r}'])):
            beat = json.loads(self.store.get(f'{rank}'))
            last, beaten, moved = self.beats.get(rank, (beat, now, now))
            beaten = beaten if last[0] == beat[0] else now
            moved = moved if last[2:] == beat[2:] else now
            self.beats[rank] = (beat, beaten, moved)
        before, self.last_message = self.last_message, self._compare(now)
        return self.last_message if self.last_message != before else None

    def _compare(self, now: float) -> str:
        if now - self.beats[self.rank][2] < self.seconds:
            return ''  # this rank makes progress
        silent = [r for r, (_, beaten, _) in self.beats.items() if now - beaten >= self.seconds]
        if any(rank not in silent for rank in range(self.rank)):
            return ''  # rank 0 reports
        states = {rank: tuple(beat[2:]) for rank, (beat, _, _) in self.beats.items()}
        most = Counter(states.values()).most_common(1)[0][0]
        named = silent or [rank for rank, state in states.items() if state != most]
        if not named:
            return ''  # all ranks are in a long evaluation or compilation
        iteration, activity = states[named[0]]
        reason = (
            f'{activity} at iteration {iteration + 1} while the others wait ({most[1]}, iteration '
            f'{most[0] + 1}).'
        )
        reason = 'does not respond: stopped or disconnected.' if silent else reason
        where = self.beats[named[0]][0][1]
        return f'No progress for {self.seconds:g} s: {_name_ranks(named, where)} {reason}'
