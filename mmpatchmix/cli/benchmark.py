"""Tell which side limits a training on this machine: the loader or the step.

mmpatchmix benchmark patchmix_vit-s_in1k --data-root PATH
mmpatchmix benchmark patchmix_vit-s_folder --synthetic          # no images at hand
mmpatchmix benchmark CONFIG --workers 16 --batch-size 64        # what if
bash tools/torchrun.sh 8 -m mmpatchmix benchmark CONFIG --launcher pytorch   # on 8 GPUs

Measures the loader alone, the step alone (one batch, again and again) and both together in about
a minute; more where a step takes seconds, for which a small --batch-size helps. Writes nothing.
Files that are read for the first time come slower from a disk: a second call tells.
"""

from __future__ import annotations

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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpatchmix.cli.arguments import (
    add_common_arguments,
    load_config,
    new_parser,
    set_data_root,
    set_precision,
)
from mmpatchmix.cli.verb import exit_on_user_error

if TYPE_CHECKING:
    from mmengine.runner import Runner
    from PIL import Image
    from torch.utils.data import DataLoader

IMAGENET_IMAGES = 1_281_167


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('benchmark', __doc__)
    add_common_arguments(parser)
    add = parser.add_argument
    add('--amp', action=argparse.BooleanOptionalAction, help='bfloat16 autocast, or float32')
    add('--batch-size', type=int, metavar='N', help='images per rank and step')
    add('--seconds', type=float, default=10.0, help='for each of the three phases; default: 10')
    add('--synthetic', action='store_true', help='make photos up, for configs that read a folder')
    add('--images', type=int, metavar='N', help='images of an epoch, to tell its duration')
    add('--json', action='store_true', help='end with all figures as a JSON line')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and leave nothing behind.

    Args:
        argv: Arguments; those of the process by default.
    """
    args = parse_args(argv)
    # Batch systems and torchrun end processes so; by default nothing would be cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with exit_on_user_error(args.verbose), tempfile.TemporaryDirectory(prefix='mmpatchmix-') as tmp:
        from mmpatchmix.cli.verb import quiet_stack

        quiet_stack()
        cfg = load_config(args)
        apply_arguments(cfg, args, Path(tmp))
        benchmark(args, cfg)
        gc.collect()  # ends the workers, before what they read is removed


def apply_arguments(cfg: Any, args: argparse.Namespace, scratch: Path) -> None:
    """Turn the arguments of this verb into config values; make photos up if asked to.

    Raises:
        ValueError: If the config describes no training, or reads no folder of images.
    """
    if not cfg.get('train_dataloader'):
        raise ValueError(f'{args.config} describes no training (train_dataloader).')
    loader, dataset = cfg.train_dataloader, cfg.train_dataloader.dataset
    set_precision(cfg, args.amp)
    loader.batch_size = args.batch_size or loader.batch_size
    cfg.work_dir, cfg.log_level = str(scratch), 'INFO' if args.verbose else 'WARNING'
    if args.synthetic:
        if dataset.type != 'mmpatchmix.ImageFolder':
            raise ValueError(f'--synthetic: this config reads {dataset.type}, no folder of images.')

        num_images = max(512, 4 * loader.batch_size * int(os.environ.get('WORLD_SIZE', 1)))
        write_sample_photos(scratch / 'images' / (dataset.get('data_prefix') or ''), num_images)
        set_data_root(cfg, str(scratch / 'images'))


def benchmark(args: argparse.Namespace, cfg: Any) -> None:
    """Build, measure, and print.

    Raises:
        ValueError: If a batch does not fit into the memory of the GPU.
    """
    import torch
    from mmengine.dist import all_gather_object, is_main_process

    from mmpatchmix.cli.check_run import check_run
    from mmpatchmix.cli.verb import build_runner
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
    gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host_kib) / 2**20
    if torch.cuda.is_available():
        gib = torch.cuda.max_memory_allocated() / 2**30
    gib = max(all_gather_object(gib))
    if not is_main_process():
        return
    num_images = args.images or (IMAGENET_IMAGES if args.synthetic else len(loader.dataset))
    num_epochs = cfg.train_cfg.get('max_epochs') or (
        runner.max_iters * batch_size * speeds.num_ranks / num_images
    )
    epoch_seconds = num_images / speeds.together_rate
    epoch, run = (timedelta(seconds=math.ceil(n * epoch_seconds)) for n in (1, num_epochs))
    words, machine = ' '.join(verdict(speeds)), describe_machine()
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
        figures = {'limit': speeds.limit, 'workers_needed': speeds.workers_needed, 'verdict': words}
        figures |= {'batch_size': batch_size, 'memory_gib': gib, 'num_images': num_images}
        figures |= {'num_epochs': num_epochs, 'epoch_seconds': epoch_seconds}
        print(json.dumps(machine | asdict(speeds) | figures))


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
    from mmengine.hooks import EMAHook, RuntimeInfoHook
    from mmengine.runner import IterBasedTrainLoop

    from mmpatchmix.cli.check_run import prepare_training
    from mmpatchmix.engine import MomentumScheduleHook

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
    import torch
    from mmengine.dataset import InfiniteSampler
    from mmengine.dist import all_gather_object

    from mmpatchmix.report.run_record import cores_per_process

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
    from mmengine.dist import all_gather_object, is_main_process

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
    import torch

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


def write_sample_photos(
    folder: str | Path, num_images: int, num_distinct: int = 64, seed: int = 0
) -> None:
    """Write JPEGs of about 500x375 pixels and 100 kB each, as ImageNet's are.

    They are crops of two photographs, resized, mirrored and changed in brightness, half of
    them each, in folders ``0`` and ``1``. Files beyond ``num_distinct`` are further names of
    earlier ones, so many of them take hardly any time or room.

    Args:
        folder: Where to; made when it is not there.
        num_images: How many files.
        num_distinct: How many of them differ.
        seed: Of the variations.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(seed)
    paths = [Path(folder, str(i % len(photos)), f'{i:07d}.jpg') for i in range(num_images)]
    for path in paths[: len(photos)]:
        path.parent.mkdir(parents=True, exist_ok=True)
    num_distinct -= num_distinct % len(photos)  # so that further names stay in their folder
    for index, path in enumerate(paths):
        if index >= num_distinct:
            path.hardlink_to(paths[index % num_distinct])
            continue
        # Quality 96 makes up for the detail that enlarging cannot add.
        _vary(photos[index % len(photos)], rng).save(path, quality=96)


def _vary(photo: Image.Image, rng: Any) -> Image.Image:
    from PIL import Image, ImageOps

    width, height = photo.size
    share = rng.uniform(0.6, 1.0)
    crop_width, crop_height = int(share * width), int(share * height)
    left = rng.integers(width - crop_width + 1)
    top = rng.integers(height - crop_height + 1)
    long_side, short_side = int(rng.uniform(460, 540)), int(rng.uniform(340, 410))
    image = photo.crop((left, top, left + crop_width, top + crop_height))
    image = image.resize((long_side, short_side), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < 0.25:
        image = image.transpose(Image.Transpose.ROTATE_90)  # upright
    brightness = rng.uniform(0.8, 1.2)
    return image.point(lambda value: min(255, int(brightness * value)))
