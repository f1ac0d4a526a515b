"""Tell which side limits a training on this machine: the loader or the step.

mmpatchmix benchmark patchmix_vit-s_in1k --data-root PATH
mmpatchmix benchmark patchmix_vit-s_folder --synthetic          # no images at hand
mmpatchmix benchmark CONFIG --workers 16 --batch-size 64        # what if
bash tools/torchrun.sh 8 tools/benchmark.py CONFIG --launcher pytorch   # on 8 GPUs

Measures the loader alone, the step alone (one batch, again and again) and both together in about
a minute; more where a step takes seconds, for which a small --batch-size helps. Writes nothing.
Files that are read for the first time come slower from a disk: a second call tells.
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
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import (
    add_common_arguments,
    load_config,
    new_parser,
    set_data_root,
    set_precision,
)
from mmpatchmix.cli.errors import exit_on_user_error

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
        from mmpatchmix.cli.console import quiet_stack

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
        from mmpatchmix.datasets.sample_photos import write_sample_photos

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

    from mmpatchmix.cli.build_runner import build_runner
    from mmpatchmix.cli.check_run import check_run
    from mmpatchmix.cli.describe_machine import describe_machine
    from mmpatchmix.cli.loader_or_step import make_step, measure, verdict

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
