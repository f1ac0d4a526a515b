"""Measure the loader, the step and both together, and say which one limits a training."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import EMAHook, RuntimeInfoHook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmpatchmix.cli.describe_machine import cores_per_process
from mmpatchmix.cli.dry_run import prepare_training
from mmpatchmix.engine import MomentumScheduleHook

BALANCED = 1.1  # rates closer than this do not differ enough to act on
COMPETING = 0.85  # of the slower side's rate: less says that the sides are in each other's way


@dataclass(frozen=True)
class Speeds:
    """What was measured, and with what."""

    num_ranks: int
    num_workers: int  # per rank; 0 where the process loads by itself
    num_cores: int  # per rank
    step_threads: int  # cores of a rank that the step computes on; 0 with an accelerator
    data_rate: float  # images/s of the loader alone, of all ranks
    step_rate: float  # images/s of steps on one batch that is there already, of all ranks
    together_rate: float  # images/s of the loader feeding steps, of all ranks

    @property
    def image_seconds(self) -> float:
        """Seconds of a worker per image; workers beyond the cores only take turns."""
        return min(max(1, self.num_workers), self.num_cores) * self.num_ranks / self.data_rate

    @property
    def workers_needed(self) -> int:
        """Workers per rank, each on a core of its own, that deliver what the step takes."""
        return max(1, math.ceil(self.step_rate / self.num_ranks * self.image_seconds - 1e-9))

    @property
    def limit(self) -> str:
        """The slower side: ``'loader'``, ``'step'`` or ``'neither'``."""
        if self.num_workers == 0:  # one after the other: what the step lacks is the loader's time
            return 'loader' if self.together_rate * BALANCED <= self.step_rate else 'step'
        ratio = self.data_rate / self.step_rate
        return 'step' if ratio >= BALANCED else 'loader' if ratio * BALANCED <= 1 else 'neither'


def make_step(runner: Runner) -> Callable[[dict], object]:
    """Return the iteration of a Runner that has not started, with hooks that compute only."""
    prepare_training(runner)
    computing = (EMAHook, MomentumScheduleHook, RuntimeInfoHook)  # others log, save, schedule
    runner._hooks = [hook for hook in runner.hooks if isinstance(hook, computing)]
    runner.call_hook('before_run')
    by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
    return runner.train_loop.run_iter if by_iter else partial(runner.train_loop.run_iter, 0)


def measure(
    loader: DataLoader, step: Callable[[dict], object], batch_size: int, seconds: float
) -> Speeds:
    """Measure on all ranks at the same time.

    Args:
        loader: The train loader; from now on it has no end.
        step: Trains on a batch as the loader yields it.
        batch_size: Images of a batch.
        seconds: Goal for each of the three phases, without its warm-up.
    """
    loader.batch_sampler.sampler = InfiniteSampler(loader.dataset)
    batches, num_workers = iter(loader), loader.num_workers
    num_stored = num_workers * (loader.prefetch_factor or 0)
    # Workers begin together and so deliver in rounds: only whole ones say how quick they are.
    round_size = max(1, num_workers)
    batch = next(batches)
    for _ in range(round_size - 1):  # the workers have just started
        next(batches)
    data_seconds = _time_calls('data only', lambda: next(batches), seconds, round_size)
    time.sleep(num_stored * data_seconds)  # until the workers have filled their store and rest

    step(batch)  # compiles, tries kernels out and allocates
    step(batch)
    step_seconds = _time_calls('step only', lambda: step(batch), seconds)

    # Where the step may wait, what is in store does not count. On a CPU both sides share the
    # cores: a loader that is twice as quick alone may still be the slower one.
    may_wait = max(all_gather_object(2 * data_seconds > step_seconds))
    for _ in range(num_stored if may_wait else 0):
        step(next(batches))
    round_size = round_size if may_wait else 1
    both = _time_calls('together', lambda: step(next(batches)), seconds, round_size)

    ranks = all_gather_object([batch_size / each for each in (data_seconds, step_seconds, both)])
    cores = cores_per_process()
    threads = 0 if torch.accelerator.is_available() else min(cores, torch.get_num_threads())
    return Speeds(len(ranks), num_workers, cores, threads, *map(sum, zip(*ranks, strict=True)))


def _time_calls(phase: str, function: Callable, seconds: float, round_size: int = 1) -> float:
    """Return the seconds per call, over whole rounds of calls; one round ahead does not count.

    All ranks call as often, since steps wait for each other.
    """
    if is_main_process():
        print(f'measuring: {phase}', file=sys.stderr, flush=True)

    def time_rounds(count: int) -> float:
        began = _synchronized_time()
        for _ in range(count * round_size):
            function()
        return _synchronized_time() - began

    num_rounds = math.ceil(max(2 / round_size, seconds / max(time_rounds(1), 1e-4)))
    num_rounds = max(all_gather_object(num_rounds))
    return time_rounds(num_rounds) / (num_rounds * round_size)


def _synchronized_time() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def verdict(speeds: Speeds) -> list[str]:
    """Return sentences: which side limits, by how much, and what would change it."""
    data_rate, step_rate, together_rate = speeds.data_rate, speeds.step_rate, speeds.together_rate
    workers, cores, needed = speeds.num_workers, speeds.num_cores, speeds.workers_needed
    if speeds.limit == 'loader':
        ratio = step_rate / (data_rate if workers else together_rate)
        free = max(0, cores - speeds.step_threads)
        sentences = [f'The loader limits: the step alone is {ratio:.1f} times as quick.']
        if needed <= free:
            sentences.append(f'--workers {needed} instead of {workers} would do.')
        else:
            sentences.append(
                f'{needed} workers on as many cores would do; of its {cores} cores a process has '
                f'{free} to spare.'
            )
    elif speeds.limit == 'neither':
        sentences = ['Balanced: loader and step differ by less than 10 %.']
    elif workers:
        sentences = [f'The step limits: the loader is {data_rate / step_rate:.1f} times as quick.']
        if needed < workers:
            sentences.append(f'--workers {needed} would do.')
    else:
        sentences = ['The step limits, even without workers.']
    if workers > cores:
        sentences.append(f'{workers} workers take turns: a process has cores for {cores}.')
    share = together_rate / min(data_rate, step_rate)
    if workers and share <= COMPETING:
        sentences.append(
            f'Together they reach {share:.0%} of what the slower one does alone: they compete '
            'for the cores, or the data were at hand only at first.'
        )
    return sentences
