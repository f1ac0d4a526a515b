#!/usr/bin/env python
"""Tell which side limits a training on this machine: the loader or the step.

python tools/benchmark.py configs/patchmix_vit-s_in1k.py --data-root PATH
python tools/benchmark.py configs/patchmix_vit-s_folder.py --synthetic   # no images at hand
python tools/benchmark.py CONFIG --workers 16 --batch-size 64            # what if
bash tools/torchrun.sh 8 tools/benchmark.py CONFIG --launcher pytorch    # on 8 GPUs

Measures the loader alone, the step alone (one batch, again and again), and the loop of both;
then says which side limits, how many workers would do, and how long the run would take.
Nothing is written. Takes about a minute; longer where a step takes seconds, for which a
small --batch-size helps. What is read from a disk for the first time comes slower than
again: a second call tells.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()

import torch  # noqa: E402
from mmengine.device import get_device  # noqa: E402
from mmengine.dist import all_gather_object, get_world_size, is_main_process  # noqa: E402
from mmengine.runner import EpochBasedTrainLoop, Runner  # noqa: E402

from mmpatchmix.cli.bottleneck import (  # noqa: E402
    Length,
    Memory,
    Setting,
    describe,
    epoch_seconds,
    verdict,
    which_side,
    worker_seconds_per_image,
    workers_needed,
)
from mmpatchmix.cli.check_config import check_config  # noqa: E402
from mmpatchmix.cli.check_run import check_run  # noqa: E402
from mmpatchmix.cli.describe_machine import describe_machine  # noqa: E402
from mmpatchmix.cli.launch import (  # noqa: E402
    add_common_arguments,
    build_runner,
    exit_on_user_error,
    load_config,
    set_data_root,
    set_precision,
)
from mmpatchmix.cli.throughput import (  # noqa: E402
    Stopwatch,
    TrainStep,
    combine,
    measure,
)
from mmpatchmix.datasets.sample_photos import write_sample_photos  # noqa: E402

IMAGENET_IMAGES = 1_281_167


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        help='bfloat16 autocast, or float32; as tools/train.py',
    )
    parser.add_argument('--batch-size', type=int, help='images per process; those of the config')
    parser.add_argument('--workers', type=int, help='workers per process; those of the config')
    parser.add_argument(
        '--seconds', type=float, default=10.0, help='goal for each of three phases; default: 10'
    )
    parser.add_argument(
        '--iters',
        type=int,
        help='batches of each phase, instead of --seconds; rounded up to whole rounds of the '
        'workers where the loader may limit',
    )
    parser.add_argument(
        '--synthetic',
        action='store_true',
        help='make JPEGs of about 500x375 pixels in a temporary folder, to judge a machine '
        'before the images are there; for configs that read a folder of images',
    )
    parser.add_argument(
        '--images',
        type=int,
        help='images of an epoch, to tell its duration; those of the data set by default, with '
        f"--synthetic ImageNet-1K's {IMAGENET_IMAGES:,}",
    )
    parser.add_argument('--json', action='store_true', help='end with all figures as a JSON line')
    args = parser.parse_args()
    for name in ('batch_size', 'seconds', 'iters', 'images'):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f'--{name.replace("_", "-")} must be above 0')
    if args.workers is not None and args.workers < 0:
        parser.error('--workers must be at least 0, which loads in the process itself')
    if args.synthetic and args.data_root:
        parser.error('--synthetic makes its own images: leave out --data-root')
    return args


def apply_arguments(cfg, args: argparse.Namespace) -> None:
    """Turn the arguments of this tool into config values."""
    loader = cfg.get('train_dataloader')
    if not loader:
        raise ValueError(f'{args.config} describes no training (train_dataloader).')
    set_precision(cfg, args.amp)
    if args.batch_size is not None:
        loader.batch_size = args.batch_size
    if args.workers is not None:
        loader.num_workers = args.workers
    if not loader.get('num_workers'):
        # Torch refuses what concerns workers where there are none.
        loader.persistent_workers = False
        loader.pop('prefetch_factor', None)
    if not args.verbose:
        cfg.log_level = 'WARNING'


def reads_folder(cfg) -> bool:
    """Whether the training images are those of a folder."""
    return cfg.train_dataloader.dataset.type == 'mmpatchmix.ImageFolder'


def use_sample_photos(cfg, folder: str) -> None:
    """Make photographs in a folder and let the config read them.

    Raises:
        ValueError: If the config does not read a folder of images.
    """
    dataset = cfg.train_dataloader.dataset
    if not reads_folder(cfg):
        raise ValueError(
            f'--synthetic makes a folder of images, but this config reads {dataset.type}. Leave '
            'it out, or use a config that reads a folder, as configs/patchmix_vit-s_folder.py.'
        )
    num_ranks = int(os.environ.get('WORLD_SIZE', 1))
    # A held-out share may go, so a few batches per rank and then some.
    num_images = max(512, 4 * cfg.train_dataloader.batch_size * num_ranks)
    write_sample_photos(Path(folder, dataset.get('data_prefix') or ''), num_images)
    set_data_root(cfg, folder)


def host_peak_bytes() -> int:
    """Peak memory of this process so far."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_memory(host_bytes_before: int) -> Memory:
    """Peak memory of this rank, of its GPU where there is one."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return Memory(torch.cuda.max_memory_allocated(), total)
    return Memory(host_peak_bytes() - host_bytes_before)


class Progress:
    """Tells how far a phase is: on a terminal in one line that changes, else once a phase."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self.phase = None

    def __call__(self, phase: str, share: float) -> None:
        """Show the share of a phase."""
        if not is_main_process():
            return
        if self.on_terminal:
            print(f'\r\033[Kmeasuring: {phase}, {100 * share:.0f} %', end='', file=sys.stderr)
        elif phase != self.phase:
            print(f'measuring: {phase}', file=sys.stderr, flush=True)
        self.phase = phase

    def clear(self) -> None:
        """Give the line back."""
        if self.phase and self.on_terminal:
            print('\r\033[K', end='', file=sys.stderr, flush=True)


def run_length(runner: Runner, setting: Setting, num_images: int | None) -> Length:
    """Length of the run, of its own epochs or of epochs of ``num_images``."""
    loader, loop = runner.train_dataloader, runner.train_loop
    batch = setting.num_ranks * setting.batch_size
    counts_epochs = isinstance(loop, EpochBasedTrainLoop)
    restarts = counts_epochs and not loader.persistent_workers
    if num_images is None and counts_epochs:
        return Length(len(loader.dataset), len(loader), loop.max_iters, restarts)
    num_images = num_images or len(loader.dataset)
    iters = max(1, num_images // batch)
    return Length(
        num_images, iters, iters * loop.max_epochs if counts_epochs else loop.max_iters, restarts
    )


def precision(runner: Runner) -> str:
    """What the forward computes in."""
    device = get_device().split(':')[0]
    with runner.optim_wrapper.optim_context(runner.model):
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return str(dtype or torch.get_default_dtype()).removeprefix('torch.')


def title(args: argparse.Namespace, machine: dict) -> str:
    """What was measured, and on what."""
    cores = f'{machine["processor"]} ({machine["cores"]} cores per process)'
    accelerator = machine['accelerator']
    place = f'{cores}, no accelerator' if accelerator == 'none' else f'{accelerator}, {cores}'
    data = ' with made-up images' if args.synthetic else ''
    return f'{args.config}{data} on {place}'


def benchmark(args: argparse.Namespace, cfg) -> None:
    """Build, measure, and print."""
    workers_configured = cfg.train_dataloader.num_workers
    host_bytes_before = host_peak_bytes()
    runner = build_runner(cfg, args.verbose)
    loader = runner.train_dataloader
    check_run(runner)
    step = TrainStep(runner)
    machine = describe_machine()
    setting = Setting(
        num_ranks=get_world_size(),
        batch_size=loader.batch_size or loader.batch_sampler.batch_size,
        num_workers=loader.num_workers,
        workers_configured=workers_configured,
        num_cores=machine['cores'],
        step_threads=0
        if torch.accelerator.is_available()
        else min(machine['threads'], machine['cores']),
        precision=precision(runner),
    )
    progress = Progress()
    watch = Stopwatch(seconds=args.seconds, iters=args.iters, progress=progress)
    try:
        mine = measure(watch, step, loader)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f'a batch of {setting.batch_size} images does not fit into the memory of the GPU: '
            'lower --batch-size, or see model.micro_batch_size and model.backbone.with_cp.'
        ) from error
    finally:
        progress.clear()
    ranks = all_gather_object((mine, read_memory(host_bytes_before)))
    if not is_main_process():
        return
    speeds = combine([speeds for speeds, _ in ranks])
    memory = max((memory for _, memory in ranks), key=lambda memory: memory.peak_bytes)
    images = args.images or (IMAGENET_IMAGES if args.synthetic else None)
    length = run_length(runner, setting, images)
    print(title(args, machine))
    print('\n'.join(describe(speeds, setting, memory, length)))
    if args.json:
        figures = {
            'config': args.config,
            'synthetic': args.synthetic,
            **machine,
            **asdict(setting),
            **asdict(speeds),
            **asdict(memory),
            **asdict(length),
            'worker_seconds_per_image': worker_seconds_per_image(speeds, setting),
            'workers_needed': workers_needed(speeds, setting),
            'epoch_seconds': epoch_seconds(speeds, setting, length),
            'limit': which_side(speeds, setting),
            'verdict': ' '.join(verdict(speeds, setting)),
        }
        print(json.dumps(figures))


def main() -> None:
    """Measure without leaving anything behind."""
    args = parse_args()
    # Batch systems and torchrun end processes so; by default nothing would be cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cfg = load_config(args)
    apply_arguments(cfg, args)
    check_config(cfg)
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-benchmark-') as scratch:
        cfg.work_dir = scratch
        if args.synthetic:
            use_sample_photos(cfg, str(Path(scratch, 'images')))
        try:
            benchmark(args, cfg)
        except FileNotFoundError as error:
            remedy = '--data-root PATH says where the data are'
            if reads_folder(cfg):
                remedy += '; without any at hand, --synthetic measures with made-up images'
            raise FileNotFoundError(f'{str(error).rstrip(".")}. {remedy}.') from error


if __name__ == '__main__':
    with exit_on_user_error(verbose='--verbose' in sys.argv):
        main()
