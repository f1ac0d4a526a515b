#!/usr/bin/env python
"""Train what a config describes: pre-training, linear probes, fine-tuning, detection.

python tools/train.py configs/patchmix_vit-digits.py
python tools/train.py configs/patchmix_vit-s_folder.py --data-root PATH --auto-scale-lr
python tools/train.py CONFIG --dry-run          # what would happen, and one step
python tools/train.py CONFIG --resume           # continue where the run stopped
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()

from mmengine.dist import is_main_process  # noqa: E402
from mmengine.runner import find_latest_checkpoint  # noqa: E402

from mmpatchmix.cli.check_config import check_config  # noqa: E402
from mmpatchmix.cli.check_run import check_run  # noqa: E402
from mmpatchmix.cli.describe_run import describe_run  # noqa: E402
from mmpatchmix.cli.dry_run import run_one_step  # noqa: E402
from mmpatchmix.cli.launch import (  # noqa: E402
    add_common_arguments,
    build_runner,
    clear_earlier_run,
    earlier_run,
    exit_on_user_error,
    load_config,
    set_precision,
)
from mmpatchmix.cli.set_epochs import set_epochs  # noqa: E402


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or from the last checkpoint of the work dir',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace an earlier run in the work dir'
    )
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        help='bfloat16 autocast, on GPUs and CPUs; pre-training does so by itself where the '
        'device has it, --no-amp keeps to float32',
    )
    parser.add_argument('--seed', type=int, help='seed of everything random; rank r uses seed + r')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from the batch the recipe is meant for to the real one',
    )
    parser.add_argument(
        '--epochs', type=int, help='length of the run; all schedules stretch with it'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='build everything, print the recipe, take one step and stop; writes nothing',
    )
    return parser.parse_args()


def apply_arguments(cfg, args: argparse.Namespace) -> None:
    """Turn the arguments of this tool into config values."""
    if args.epochs is not None:
        set_epochs(cfg, args.epochs)
    set_precision(cfg, args.amp)
    if args.seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ValueError(
                '--auto-scale-lr needs the batch that the learning rate is meant for: set '
                'auto_scale_lr=dict(base_batch_size=...) in the config.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        if find_latest_checkpoint(cfg.work_dir) is None:
            print(f'--resume: {cfg.work_dir} has no checkpoint yet; starting from the beginning')
        cfg.resume, cfg.load_from = True, None
    elif args.resume:
        if not Path(args.resume).is_file():
            raise FileNotFoundError(
                f'--resume: there is no checkpoint {args.resume}. Without a path, --resume takes '
                'the last one of the work dir.'
            )
        cfg.resume, cfg.load_from = True, args.resume


def settle_work_dir(cfg, args: argparse.Namespace) -> None:
    """Keep a new run from burying an earlier one."""
    if int(os.environ.get('RANK', 0)) != 0 or cfg.get('resume') or not earlier_run(cfg.work_dir):
        return
    if not args.overwrite:
        last = find_latest_checkpoint(cfg.work_dir)
        raise ValueError(
            f'{cfg.work_dir} holds an earlier run{f" (last checkpoint: {last})" if last else ""}. '
            'Continue it with --resume, write elsewhere with --work-dir DIR, or replace it with '
            '--overwrite.'
        )
    clear_earlier_run(cfg.work_dir)


def main() -> None:
    """Check, build, tell, and train."""
    args = parse_args()
    cfg = load_config(args)
    apply_arguments(cfg, args)
    check_config(cfg)
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-dry-run-') as scratch:
        if args.dry_run:
            work_dir, cfg.work_dir = cfg.work_dir, scratch
        else:
            settle_work_dir(cfg, args)
        runner = build_runner(cfg, args.verbose)
        check_run(runner)
        # On every rank: data loaders agree on a seed when they are built.
        recipe = '\n'.join(describe_run(runner))
        if args.dry_run:
            recipe = recipe.replace(scratch, str(work_dir))
        runner.logger.info(f'{Path(args.config).stem}\n{recipe}')
        if not args.dry_run:
            runner.train()
            return
        result = run_one_step(runner)
    if is_main_process():
        print('one step: ' + ', '.join(f'{name} {value:.4g}' for name, value in result.items()))
        print('Everything builds and trains; nothing was written.')


if __name__ == '__main__':
    with exit_on_user_error(verbose='--verbose' in sys.argv):
        main()
