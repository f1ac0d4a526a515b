"""Which side limits a training run: arithmetic on what was measured, and its words.

Nothing here measures: see :mod:`mmpatchmix.cli.throughput`.
"""

import math
from dataclasses import dataclass

from mmpatchmix.cli.throughput import Speeds

BALANCED = 1.1  # rates closer than this do not differ enough to act on
COMPETING = 0.85  # of the slower side's rate: less says that the sides are in each other's way
NEGLIGIBLE = 0.02  # a share of the time nobody would act on


@dataclass(frozen=True)
class Setting:
    """What the figures were measured with; the same on all ranks.

    Args:
        num_ranks: Processes.
        batch_size: Images per rank and step.
        num_workers: Workers per rank, 0 where the process loads by itself.
        num_cores: Cores per rank.
        step_threads: Those of them that the step computes on; 0 with an accelerator.
        precision: What the step computes in.
        workers_configured: Workers that the config asks for, where the machine has fewer.
    """

    num_ranks: int
    batch_size: int
    num_workers: int
    num_cores: int
    step_threads: int = 0
    precision: str = 'float32'
    workers_configured: int | None = None

    @property
    def free_cores(self) -> int:
        """Cores per rank that workers can have to themselves."""
        return max(0, self.num_cores - self.step_threads)


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Args:
        num_images: Images of an epoch, of all ranks.
        iters_per_epoch: Iterations of an epoch.
        num_iters: Iterations of the run.
        restarts: Whether the workers start anew in each epoch.
    """

    num_images: int
    iters_per_epoch: int
    num_iters: int
    restarts: bool = False

    @property
    def num_epochs(self) -> float:
        """Epochs of the run."""
        return self.num_iters / self.iters_per_epoch


@dataclass(frozen=True)
class Memory:
    """Peak memory of a rank.

    Args:
        peak_bytes: Of the GPU; without one, what the process has grown by.
        total_bytes: Of the GPU; None without one.
    """

    peak_bytes: int
    total_bytes: int | None = None


def worker_seconds_per_image(speeds: Speeds, setting: Setting) -> float:
    """Seconds that one worker, or the process in the place of workers, spends on an image."""
    return max(1, setting.num_workers) * setting.num_ranks / speeds.data_rate


def workers_needed(speeds: Speeds, setting: Setting) -> int:
    """Workers per rank that deliver as much as the step takes; they work at the same pace."""
    per_rank = speeds.step_rate / setting.num_ranks
    return max(1, math.ceil(per_rank * worker_seconds_per_image(speeds, setting) - 1e-9))


def which_side(speeds: Speeds, setting: Setting) -> str:
    """``'step'``, ``'loader'``, ``'balanced'``, or ``'no workers'`` that could overlap them."""
    if setting.num_workers == 0:
        return 'no workers' if speeds.waiting_share >= NEGLIGIBLE else 'step'
    ratio = speeds.data_rate / speeds.step_rate
    if ratio >= BALANCED:
        return 'step'
    return 'loader' if ratio <= 1 / BALANCED else 'balanced'


def describe(speeds: Speeds, setting: Setting, memory: Memory, length: Length) -> list[str]:
    """What was measured and what follows from it, for people.

    Args:
        speeds: Of all ranks.
        setting: What they were measured with.
        memory: Of the rank that needs most.
        length: Of the run.

    Returns:
        list[str]: Lines; the last ones are the verdict.
    """
    measured = {
        'data only': (speeds.data_rate, _about_data(speeds, setting)),
        'step only': (speeds.step_rate, _about_step(speeds, setting)),
        'together': (
            speeds.together_rate,
            f'{format_share(speeds.waiting_share)} of the time waiting for data',
        ),
    }
    width = max(len(format_rate(rate)) for rate, _ in measured.values())
    rows = {
        name: f'{format_rate(rate):>{width}} images/s   ({about})'
        for name, (rate, about) in measured.items()
    }
    rows['memory'] = _about_memory(memory, setting)
    epoch = epoch_seconds(speeds, setting, length)
    epochs = f'{length.num_epochs:.3g} epoch' + ('' if length.num_epochs == 1 else 's')
    rows['duration'] = (
        f'{format_duration(epoch)} an epoch of {length.num_images:,} images, '
        f'{format_duration(epoch * length.num_epochs)} for {epochs}, without evaluation'
    )
    rows['verdict'] = ('\n' + ' ' * 13).join(verdict(speeds, setting))
    return [f'{name:<13}{row}' for name, row in rows.items()]


def _about_data(speeds: Speeds, setting: Setting) -> str:
    each = format_duration(worker_seconds_per_image(speeds, setting))
    first = f'first batch after {format_duration(speeds.first_batch_seconds)}'
    if not setting.num_workers:
        return f'no workers, {each} per image; {first}'
    workers = _count(setting.num_workers, 'worker')
    if setting.workers_configured not in (None, setting.num_workers):
        workers += f', {setting.workers_configured} configured'
    return f'{workers}, {each} of a worker per image; {first}'


def _about_step(speeds: Speeds, setting: Setting) -> str:
    processes = f' x {setting.num_ranks} processes' if setting.num_ranks > 1 else ''
    share = format_share(speeds.preprocess_seconds / speeds.step_seconds)
    return (
        f'batch {setting.batch_size}{processes}, {setting.precision}, '
        f'{format_duration(speeds.step_seconds)} a step; {share} of it in the data preprocessor'
    )


def _about_memory(memory: Memory, setting: Setting) -> str:
    peak = f'{memory.peak_bytes / 2**30:.1f} GiB peak'
    if memory.total_bytes:
        peak += f' of {memory.total_bytes / 2**30:.1f} GiB'
    if setting.num_ranks > 1:
        peak += ' per process'
    return peak if memory.total_bytes else f'{peak}, workers not counted'


def verdict(speeds: Speeds, setting: Setting) -> list[str]:
    """Say which side limits, by how much, and what would change it.

    Args:
        speeds: What was measured, of all ranks.
        setting: What it was measured with.

    Returns:
        list[str]: Sentences.
    """
    words = {'step': _step, 'loader': _loader, 'balanced': _balanced, 'no workers': _no_workers}
    sentences = words[which_side(speeds, setting)](speeds, setting)
    return sentences + _competition(speeds, setting)


def _step(speeds: Speeds, setting: Setting) -> list[str]:
    if setting.num_workers == 0:
        share = format_share(speeds.waiting_share)
        return [
            f'The step limits: even without workers it waits for data only {share} of the time.'
        ]
    ratio, needed = speeds.data_rate / speeds.step_rate, workers_needed(speeds, setting)
    by = f'could feed {ratio:,.0f} of them' if ratio >= 2 else f'is {_more(ratio)} quicker'
    sentences = [f'The step limits: the loader {by}.']
    if needed < setting.num_workers:
        sentences.append(f'{_count(needed, "worker")} would do.')
    return sentences


def _loader(speeds: Speeds, setting: Setting) -> list[str]:
    ratio = speeds.step_rate / speeds.data_rate
    by = f'{ratio:.1f} times the images' if ratio >= 2 else f'{_more(ratio)} more images'
    return [f'The loader limits: the step could take {by}.', *_more_workers(speeds, setting)]


def _balanced(speeds: Speeds, setting: Setting) -> list[str]:
    ratio = speeds.data_rate / speeds.step_rate
    side, ratio = ('loader', ratio) if ratio >= 1 else ('step', 1 / ratio)
    return [f'Balanced: the {side} is {_more(ratio)} quicker than the other side.']


def _no_workers(speeds: Speeds, setting: Setting) -> list[str]:
    share = format_share(speeds.waiting_share)
    return [
        f'Without workers, loading holds the step up: it waits {share} of the time.',
        *_more_workers(speeds, setting),
    ]


def _more_workers(speeds: Speeds, setting: Setting) -> list[str]:
    """What workers would bring, as far as there are cores for them."""
    needed, free = workers_needed(speeds, setting), setting.free_cores
    each = ' per process' if setting.num_ranks > 1 else ''
    if needed <= free:
        # What is left of an iteration without the wait; in the loop the step may be slower.
        gain = min(speeds.step_rate / speeds.together_rate, 1 / (1 - speeds.waiting_share))
        instead = f' instead of {setting.num_workers}' if setting.num_workers else ''
        return [
            f'{_count(needed, "worker")}{each}{instead} would bring up to '
            f'{format_rate(gain * speeds.together_rate)} images/s, {gain:.1f} times as many.'
        ]
    cores = f'this machine has only {_count(setting.num_cores, "core")} per process'
    if setting.step_threads:
        taken = 'all' if not free else str(setting.step_threads)
        cores += f', and the step computes on {taken} of them'
    sentences = [f'{_count(needed, "worker")}{each} would be needed; {cores}.']
    most = setting.num_ranks * free / worker_seconds_per_image(speeds, setting)
    if free > setting.num_workers and most > speeds.together_rate:
        sentences.append(
            f'{_count(free, "worker")}{each} would bring about {format_rate(most)} images/s.'
        )
    return sentences


def _competition(speeds: Speeds, setting: Setting) -> list[str]:
    """Say so when both together are slower than the slower one alone."""
    share = speeds.together_rate / min(speeds.data_rate, speeds.step_rate)
    if setting.num_workers == 0 or share > COMPETING:
        return []
    return [
        f'Together they reach {format_share(share)} of what the slower one does alone: they '
        f'compete for {_count(setting.num_cores, "core")}, or the data were at hand only at first.'
    ]


def epoch_seconds(speeds: Speeds, setting: Setting, length: Length) -> float:
    """Seconds of an epoch at the measured pace, without evaluation.

    An epoch begins with a wait for its first batch: for all that precedes it where workers
    start anew, for the work on it where they stay.
    """
    wait = 0.0
    if setting.num_workers:
        work = setting.batch_size * worker_seconds_per_image(speeds, setting)
        wait = speeds.first_batch_seconds if length.restarts else work
    return length.iters_per_epoch * speeds.iteration_seconds + wait


def format_rate(rate: float) -> str:
    """Three digits, at least: 1,234, 56.7, 0.0812."""
    return f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'


def format_share(share: float) -> str:
    """In percent: 4 %, 0.3 %."""
    return f'{100 * share:.0f} %' if share >= 0.0095 or not share else f'{100 * share:.1g} %'


def format_duration(seconds: float) -> str:
    """In the unit that suits it: 38 ms, 2.6 s, 12 min, 5.1 h, 3.4 days, 4 years."""
    if seconds < 1:
        value, unit = seconds * 1e3, 'ms'
    elif seconds < 120:
        value, unit = seconds, 's'
    elif seconds < 120 * 60:
        value, unit = seconds / 60, 'min'
    elif seconds < 48 * 3600:
        value, unit = seconds / 3600, 'h'
    elif seconds < 2 * 365 * 86400:
        value, unit = seconds / 86400, 'days'
    else:
        value, unit = seconds / (365 * 86400), 'years'
    return f'{value:,.0f} {unit}' if value >= 20 else f'{value:.2g} {unit}'


def _more(ratio: float) -> str:
    return f'{100 * (ratio - 1):.0f} %'


def _count(count: int, noun: str) -> str:
    return f'{count} {noun}' + ('' if count == 1 else 's')
