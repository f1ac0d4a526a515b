"""How quickly data come, how quickly steps go, and how both go together.

Nothing here judges: see :mod:`mmpatchmix.cli.bottleneck`. Every rank measures itself,
at the same time as the others; :func:`combine` makes one figure of theirs.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from mmengine.dist import barrier, broadcast
from mmengine.hooks import EMAHook, RuntimeInfoHook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmpatchmix.cli.dry_run import prepare_training, take_step
from mmpatchmix.cli.endless_loader import endless_loader
from mmpatchmix.models import unwrap_model


def synchronize() -> None:
    """Wait until the accelerator has done what it was given, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def agree(number: int) -> int:
    """Rank 0's number, on all ranks: steps wait for each other, so all take as many."""
    shared = torch.tensor(number)
    broadcast(shared)
    return int(shared)


@dataclass
class Stopwatch:
    """How long to measure, by which clock, and whom to tell how far it is.

    Args:
        seconds: Goal for each phase, without its warm-up.
        iters: Measured batches or steps of each phase, instead of ``seconds``.
        clock: Seconds since whenever.
        synchronize: Waits for the device.
        agree: Makes one number of all ranks' numbers.
        start_together: Waits for all ranks.
        progress: Called with a phase and the share of it that is done, in [0, 1].
        use_events: Whether :meth:`mark` asks the GPU, which lags behind the host.
    """

    seconds: float = 10.0
    iters: int | None = None
    clock: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], None] = synchronize
    agree: Callable[[int], int] = agree
    start_together: Callable[[], None] = barrier
    progress: Callable[[str, float], None] = lambda phase, share: None
    use_events: bool = field(default_factory=torch.cuda.is_available)

    def plan(self, expected_seconds: float, multiple_of: int = 1) -> int:
        """Iterations to measure, at least 2, if one takes ``expected_seconds``."""
        wanted = self.iters or max(2, self.seconds / max(expected_seconds, 1e-4))
        return self.agree(math.ceil(wanted / multiple_of) * multiple_of)

    def begin(self) -> float:
        """The time, once the device and all ranks are ready."""
        self.synchronize()
        self.start_together()
        return self.clock()

    def end(self) -> float:
        """The time, once the device is done."""
        self.synchronize()
        return self.clock()

    def mark(self) -> float | torch.cuda.Event:
        """The moment at which the device gets here, for :meth:`between`."""
        if not self.use_events:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, earlier, later) -> float:
        """Seconds between two marks, once the device is done with both."""
        return earlier.elapsed_time(later) / 1000 if self.use_events else later - earlier


@dataclass(frozen=True)
class Speeds:
    """What one rank measured, or all of them together.

    Args:
        data_rate: Images/s of the loader alone.
        first_batch_seconds: From nothing to its first batch: start of the workers and
            the work on that batch.
        step_rate: Images/s of steps on one batch that is there already.
        step_seconds: Duration of such a step.
        preprocess_seconds: Duration of the data preprocessor on that batch.
        together_rate: Images/s of the loop, the loader feeding steps.
        iteration_seconds: Duration of an iteration of it.
        waiting_share: Share of the loop's time that the step waited for data, in [0, 1].
    """

    data_rate: float
    first_batch_seconds: float
    step_rate: float
    step_seconds: float
    preprocess_seconds: float
    together_rate: float
    iteration_seconds: float
    waiting_share: float


def combine(ranks: Sequence[Speeds]) -> Speeds:
    """Rates summed over the ranks; of durations and waiting, the worst, which holds all."""
    return Speeds(
        **{
            name: (sum if name.endswith('_rate') else max)(getattr(rank, name) for rank in ranks)
            for name in Speeds.__dataclass_fields__
        }
    )


class TrainStep:
    """An iteration as the training loop takes it, with all that computes on the model.

    That is the momentum encoder (once per optimizer step), ``train_step`` and averaged
    weights (``EMAHook``). Other hooks log and save, and are left out; that mmengine's
    own reads all losses on the host, which waits for the device, is not.

    Args:
        runner: A Runner that has not started.
    """

    def __init__(self, runner: Runner) -> None:
        prepare_training(runner)
        self.runner = runner
        # Ours is a subclass that lets the host run ahead.
        self.reads_losses = any(type(hook) is RuntimeInfoHook for hook in runner.hooks)
        self.averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in self.averages:
            hook.before_run(runner)
        self.num_steps = 0

    def __call__(self, batch: dict) -> None:
        """Train on a batch as the loader yields it."""
        accumulation = self.runner.optim_wrapper._accumulative_counts
        outputs = take_step(self.runner, batch, update_momentum=self.num_steps % accumulation == 0)
        if self.reads_losses:
            [value.item() for value in outputs.values()]
        for hook in self.averages:
            hook.after_train_iter(self.runner, self.num_steps, batch)
        self.num_steps += 1

    def preprocess(self, batch: dict) -> None:
        """The part of the step that augments, normalises and mixes; moves to the device, too."""
        with self.runner.optim_wrapper.optim_context(self.runner.model):
            unwrap_model(self.runner.model).data_preprocessor(batch, True)


def count_images(batch: dict) -> int:
    """Images of a batch, be its inputs a tensor, a list, or a dict of views."""
    inputs = batch['inputs']
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def measure_data(watch: Stopwatch, loader: DataLoader) -> tuple[float, float, dict]:
    """Iterate over a loader and do nothing with what it yields.

    Workers begin together and so deliver in rounds. The first round is not counted and
    only whole rounds are.

    Args:
        watch: How long to measure.
        loader: One without end.

    Returns:
        tuple: Images/s, seconds to the first batch, and the first batch.
    """
    watch.progress('data only', 0.0)
    began = watch.begin()
    batches = iter(loader)
    first = next(batches)
    first_batch_seconds = watch.clock() - began
    round_size = max(1, loader.num_workers)
    for _ in range(round_size - 1):
        next(batches)
    num_images = num_batches = 0
    began, share = watch.clock(), 0.0
    while share < 1:
        num_images += sum(count_images(next(batches)) for _ in range(round_size))
        num_batches += round_size
        seconds = watch.clock() - began
        share = num_batches / watch.iters if watch.iters else seconds / watch.seconds
        watch.progress('data only', min(share, 1.0))
    return num_images / seconds, first_batch_seconds, first


def measure_step(watch: Stopwatch, step: TrainStep, batch: dict) -> tuple[float, float]:
    """Take a step on the same batch again and again, and run its data preprocessor alone.

    Args:
        watch: How long to measure.
        step: The step.
        batch: As the loader yields it.

    Returns:
        tuple: Seconds per step, seconds of the data preprocessor per step.
    """

    def repeat(phase: str, function: Callable[[dict], None], effort: float) -> float:
        watch.progress(phase, 0.0)
        # The first one compiles, tries kernels out and allocates; the next may still.
        for warmup in range(3):
            began = watch.begin()
            function(batch)
            expected = watch.end() - began
            if warmup and watch.agree(int(expected > watch.seconds / 5)):
                break
        num_iters = watch.plan(expected / effort)
        began = watch.begin()
        for index in range(num_iters):
            function(batch)
            watch.progress(phase, (index + 1) / num_iters)
        return (watch.end() - began) / num_iters

    return repeat('step only', step, 1.0), repeat('data preprocessor', step.preprocess, 0.2)


def measure_together(
    watch: Stopwatch, step: TrainStep, loader: DataLoader, data_seconds: float, step_seconds: float
) -> tuple[float, float, float]:
    """The loop: the loader feeds steps.

    A loader that is slower than the step starts with batches in store; they are used up
    before anything counts, and then whole rounds of the workers do.

    Args:
        watch: How long to measure.
        step: The step.
        loader: One without end.
        data_seconds: Seconds per batch of the loader alone.
        step_seconds: Seconds of a step alone.

    Returns:
        tuple: Images/s, seconds per iteration, share of the time spent waiting for data.
    """
    watch.progress('together', 0.0)
    num_workers = loader.num_workers
    # On a CPU both share the cores, so a loader twice as quick alone may yet be the slower.
    may_wait = num_workers and watch.agree(int(data_seconds * 2 > step_seconds))
    expected = max(data_seconds, step_seconds) if num_workers else data_seconds + step_seconds
    num_iters = watch.plan(expected, multiple_of=num_workers if may_wait else 1)
    batches = iter(loader)
    for _ in range(num_workers * loader.prefetch_factor if may_wait else 1):
        step(next(batches))

    num_images, marks = 0, []
    began = watch.begin()
    asked = watch.mark()
    for index in range(num_iters):
        batch = next(batches)
        marks.append((asked, watch.mark()))
        num_images += count_images(batch)
        step(batch)
        asked = watch.mark()
        watch.progress('together', (index + 1) / num_iters)
    seconds = watch.end() - began
    waited = sum(watch.between(*pair) for pair in marks)
    return num_images / seconds, seconds / num_iters, waited / seconds


def measure(watch: Stopwatch, step: TrainStep, loader: DataLoader) -> Speeds:
    """Measure data, step, and both together, on this rank.

    Args:
        watch: How long to measure.
        step: The step.
        loader: The train loader as the Runner builds it.

    Returns:
        Speeds: Of this rank.
    """
    data_rate, first_batch_seconds, batch = measure_data(watch, endless_loader(loader))
    step_seconds, preprocess_seconds = measure_step(watch, step, batch)
    num_images = count_images(batch)
    together_rate, iteration_seconds, waiting_share = measure_together(
        watch, step, endless_loader(loader, 1000), num_images / data_rate, step_seconds
    )
    return Speeds(
        data_rate=data_rate,
        first_batch_seconds=first_batch_seconds,
        step_rate=num_images / step_seconds,
        step_seconds=step_seconds,
        preprocess_seconds=preprocess_seconds,
        together_rate=together_rate,
        iteration_seconds=iteration_seconds,
        waiting_share=waiting_share,
    )
