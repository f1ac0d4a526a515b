"""Measure which side limits a training run on this machine: the data loader or the training step.

mmpatchmix benchmark patchmix_vit-s_in1k --data-root PATH
mmpatchmix benchmark patchmix_vit-s_folder --synthetic          # without images
mmpatchmix benchmark CONFIG --workers 16 --batch-size 64        # with other settings
bash tools/torchrun.sh 8 -m mmpatchmix benchmark CONFIG --launcher pytorch   # on 8 GPUs

Measures the loader, the step (on one batch) and both together in about a minute, longer where a
step takes seconds (lower --batch-size). Writes no files. Run it twice to measure cached files.
"""

import argparse
import gc
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import add_common_arguments, load_config, set_data_root, set_precision
from mmpatchmix.cli.verb import build_runner, make_verb

IMAGENET_IMAGES = 1_281_167
BALANCED = 1.1  # rates within this ratio count as equal
COMPETING = 0.85  # together, a smaller share of the slower side's rate means competition


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_common_arguments(parser)
    add = parser.add_argument
    add('--amp', action=argparse.BooleanOptionalAction, help='bfloat16 autocast, or float32')
    add('--batch-size', type=int, metavar='N', help='images per rank and step')
    add('--seconds', type=float, default=10.0, help='of each of the three phases; default: 10')
    add('--synthetic', action='store_true', help='generate photos, for configs of a folder')
    add('--images', type=int, metavar='N', help='images of an epoch, to estimate its duration')
    add('--json', action='store_true', help='print all figures as a JSON line at the end')


def run(args: argparse.Namespace) -> None:
    """Measure and print, and remove all temporary files."""
    # torchrun and batch systems end processes with SIGTERM: exit in order and clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-') as tmp:
        cfg = load_config(args)
        apply_arguments(cfg, args, Path(tmp))
        benchmark(args, cfg)
        gc.collect()  # ends the workers before their files are removed


def apply_arguments(cfg: Any, args: argparse.Namespace, scratch: Path) -> None:
    """Apply the arguments of this verb to the config; write photos for ``--synthetic``."""
    if not cfg.get('train_dataloader'):
        raise ValueError(f'{args.config} describes no training (train_dataloader).')
    loader, dataset = cfg.train_dataloader, cfg.train_dataloader.dataset
    set_precision(cfg, args.amp)
    loader.batch_size = args.batch_size or loader.batch_size
    cfg.work_dir, cfg.log_level = str(scratch), 'INFO' if args.verbose else 'WARNING'
    if args.synthetic:
        if dataset.type != 'mmpatchmix.ImageFolder':
            raise ValueError(
                f'--synthetic needs a config that reads mmpatchmix.ImageFolder, not {dataset.type}.'
            )
        num_images = max(512, 4 * loader.batch_size * int(os.environ.get('WORLD_SIZE', 1)))
        write_sample_photos(scratch / 'images' / (dataset.get('data_prefix') or ''), num_images)
        set_data_root(cfg, str(scratch / 'images'))


def benchmark(args: argparse.Namespace, cfg: Any) -> None:
    """Build the Runner, measure, and print on the first rank."""
    import torch
    from mmengine.dist import all_gather_object, is_main_process

    from mmpatchmix.cli.check_run import check_run
    from mmpatchmix.report.run_record import describe_machine

    host_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runner = build_runner(cfg, args.verbose)
    check_run(runner)
    batch_size, loader = cfg.train_dataloader.batch_size, runner.train_dataloader
    try:
        speeds = measure(loader, make_step(runner), batch_size, args.seconds)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f'a batch of {batch_size} images does not fit into the memory of the GPU: lower '
            '--batch-size, or see model.micro_batch_size and model.backbone.with_cp.'
        ) from error
    host_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host_kib
    on_gpu = torch.cuda.is_available()
    gib = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else host_kib / 2**20
    gib = max(all_gather_object(gib))
    if not is_main_process():
        return
    num_images = args.images or (IMAGENET_IMAGES if args.synthetic else len(loader.dataset))
    num_epochs = cfg.train_cfg.get('max_epochs') or (
        runner.max_iters * batch_size * speeds.num_ranks / num_images
    )
    epoch_seconds = num_images / speeds.together_rate
    epoch, run = (timedelta(seconds=math.ceil(n * epoch_seconds)) for n in (1, num_epochs))
    words, machine = verdict(speeds), describe_machine()
    print(
        f'{args.config} on {machine["processor"]}, accelerator: {machine["accelerator"]}\n'
        f'data only  {speeds.data_rate:,.5g} images/s from {speeds.num_workers} workers per '
        f'process, {1000 * speeds.image_seconds:.3g} ms of a core per image\n'
        f'step only  {speeds.step_rate:,.5g} images/s in {speeds.num_ranks} processes, batch '
        f'{batch_size}, {cfg.optim_wrapper.type}\n'
        f'together   {speeds.together_rate:,.5g} images/s\n'
        f'memory     {gib:.1f} GiB per process at its peak\n'
        f'duration   {epoch} an epoch of {num_images:,} images, {run} for {num_epochs:.3g} epochs, '
        f'without evaluation\n'
        f'verdict    {words}'
    )
    if args.json:
        figures = dict(batch_size=batch_size, memory_gib=gib, num_images=num_images)
        figures |= dict(num_epochs=num_epochs, epoch_seconds=epoch_seconds, verdict=words)
        figures |= dict(limit=speeds.limit, workers_needed=speeds.workers_needed)
        print(json.dumps(machine | asdict(speeds) | figures))


@dataclass(frozen=True)
class Speeds:
    """Measured rates and the setting they were measured in."""

    num_ranks: int
    num_workers: int  # per rank; 0: the process loads by itself
    num_cores: int  # per rank
    step_threads: int  # cores of a rank that the step computes on; 0 with an accelerator
    data_rate: float  # images/s of the loader alone, all ranks
    step_rate: float  # images/s of steps on one batch in memory, all ranks
    together_rate: float  # images/s of steps on batches of the loader, all ranks

    @property
    def image_seconds(self) -> float:
        """Seconds of a core per image; more workers than cores load no faster."""
        return min(max(1, self.num_workers), self.num_cores) * self.num_ranks / self.data_rate

    @property
    def workers_needed(self) -> int:
        """Workers per rank, each on its own core, that load as fast as the step trains."""
        return max(1, math.ceil(self.step_rate / self.num_ranks * self.image_seconds - 1e-9))

    @property
    def limit(self) -> str:
        """The slower side: ``'loader'``, ``'step'`` or ``'neither'``."""
        if self.num_workers == 0:  # loading and step alternate
            return 'loader' if self.together_rate * BALANCED <= self.step_rate else 'step'
        ratio = self.data_rate / self.step_rate
        return 'step' if ratio >= BALANCED else 'loader' if ratio * BALANCED <= 1 else 'neither'


def verdict(speeds: Speeds) -> str:
    """Return at most three sentences: the limiting side, workers to start, and competition."""
    workers, needed = speeds.num_workers, speeds.workers_needed
    free = max(0, speeds.num_cores - speeds.step_threads)
    text = 'Balanced: loader and step differ by less than 10 %.'
    if speeds.limit == 'loader':
        ratio = speeds.step_rate / (speeds.data_rate if workers else speeds.together_rate)
        text = f'The loader limits: the step alone is {ratio:.1f} times as fast. '
        if needed <= free:
            text += f'Balance needs --workers {needed} instead of {workers}.'
        else:
            text += f'Balance needs {needed} workers and as many cores; {free} cores are free.'
    elif speeds.limit == 'step':
        ratio = speeds.data_rate / speeds.step_rate
        text = f'The step limits: the loader alone is {ratio:.1f} times as fast.'
        text += f' --workers {needed} would be enough.' if needed < workers else ''
    share = speeds.together_rate / min(speeds.data_rate, speeds.step_rate)
    if workers and share <= COMPETING:
        text += (
            f' Together they reach {share:.0%} of the slower rate: they compete for cores, or only '
            'the first images were cached.'
        )
    return text


def make_step(runner: Any) -> Callable[[dict], object]:
    """Return the train iteration of a Runner that has not started, without logs and checkpoints."""
    from mmengine.hooks import EMAHook, RuntimeInfoHook
    from mmengine.runner import IterBasedTrainLoop

    from mmpatchmix.cli.check_run import prepare_training
    from mmpatchmix.engine import MomentumScheduleHook

    prepare_training(runner)
    kept = (EMAHook, MomentumScheduleHook, RuntimeInfoHook)
    runner._hooks = [hook for hook in runner.hooks if isinstance(hook, kept)]
    runner.call_hook('before_run')
    by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
    return runner.train_loop.run_iter if by_iter else partial(runner.train_loop.run_iter, 0)


def measure(loader: Any, step: Callable[[dict], object], batch_size: int, seconds: float) -> Speeds:
    """Measure a train loader, a step and both together on all ranks at the same time.

    The sampler of the loader becomes infinite. Each phase takes ``seconds``, without its warm-up.
    """
    import torch
    from mmengine.dataset import InfiniteSampler
    from mmengine.dist import all_gather_object

    from mmpatchmix.report.run_record import cores_per_process

    loader.batch_sampler.sampler = InfiniteSampler(loader.dataset)
    batches, num_workers = iter(loader), loader.num_workers
    num_stored = num_workers * (loader.prefetch_factor or 0)
    # Workers start together and deliver in rounds: only whole rounds give their rate.
    round_size = max(1, num_workers)
    batch = next(batches)
    for _ in range(round_size - 1):  # start-up of the workers
        next(batches)
    data_seconds = _time_calls('data only', lambda: next(batches), seconds, round_size)
    time.sleep(num_stored * data_seconds)  # until the prefetch queues are full and workers idle

    step(batch)  # compiles, selects kernels and allocates
    step(batch)
    step_seconds = _time_calls('step only', lambda: step(batch), seconds)

    # Prefetched batches must not count if the step may wait for data. On a CPU both share the
    # cores: a loader that is up to twice as fast alone may be slower than the step.
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
    """Return seconds per call over whole rounds after a warm-up, as many calls on all ranks."""
    import torch
    from mmengine.dist import all_gather_object, is_main_process

    if is_main_process():
        print(f'measuring: {phase}', file=sys.stderr, flush=True)

    def now() -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()

    def time_rounds(count: int) -> float:
        start = now()
        for _ in range(count * round_size):
            function()
        return now() - start

    num_rounds = math.ceil(max(2 / round_size, seconds / max(time_rounds(1), 1e-4)))
    num_rounds = max(all_gather_object(num_rounds))
    return time_rounds(num_rounds) / (num_rounds * round_size)


def write_sample_photos(folder: str | Path, num_images: int, num_distinct: int = 64) -> None:
    """Write JPEGs of ImageNet's usual size, about 500x375 pixels and 100 kB each.

    They are random crops of scikit-learn's two sample photographs, in folders ``0`` and ``1``, the
    same at each call. Files after ``num_distinct``, rounded down to an even number, are hard links.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, rng = load_sample_images().images, np.random.default_rng(0)
    paths = [Path(folder, str(i % 2), f'{i:07d}.jpg') for i in range(num_images)]
    num_distinct -= num_distinct % 2
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if index >= num_distinct:
            path.hardlink_to(paths[index % num_distinct])
            continue
        photo = Image.fromarray(photos[index % 2])
        share, (x, y) = rng.uniform(0.6, 1.0), rng.uniform(size=2)
        left, top = (1 - share) * x * photo.width, (1 - share) * y * photo.height
        box = (left, top, left + share * photo.width, top + share * photo.height)
        size = rng.integers((460, 340), (540, 410)).tolist()
        # Quality 96 makes up for the detail that enlarging cannot add.
        photo.resize(size, Image.Resampling.BICUBIC, box).save(path, quality=96)


parse_args, main = make_verb('benchmark', __doc__, add_arguments, run)
