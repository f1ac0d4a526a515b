"""Train what a config describes: pre-training, linear probes, fine-tuning, detection.

mmpatchmix train patchmix_vit-digits
mmpatchmix train patchmix_vit-s_folder --data-root PATH --auto-scale-lr
mmpatchmix train CONFIG --dry-run          # what would happen, and one step
mmpatchmix train CONFIG --resume           # continue where the run stopped
mmpatchmix train CONFIG --init CHECKPOINT  # start from a backbone, of ours or the public's
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import (
    TRACKERS,
    add_common_arguments,
    load_config,
    new_parser,
    set_epochs,
    set_precision,
    set_trackers,
)
from mmpatchmix.cli.verb import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('train', __doc__)
    add_common_arguments(parser)
    parser.add_argument(
        '--init',
        metavar='CHECKPOINT',
        help='start the backbone from a checkpoint: ours, published PatchMix, MoCo v3, DINO, '
        "DINOv2, MAE, timm's, or a folder of Hugging Face's ViT",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or from the last checkpoint of the work dir',
    )
    parser.add_argument(
        '--change-schedule',
        action='store_true',
        help='resume with another length, batch, learning rate or mixing, from here on',
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
    parser.add_argument(
        '--contact-sheet',
        metavar='FILE',
        help='with --dry-run, draw augmented views as the model sees them into this PNG file',
    )
    parser.add_argument(
        '--track',
        action='append',
        default=[],
        choices=TRACKERS,
        help='also send figures and config to this tracker; its package has to be installed',
    )
    parser.add_argument(
        '--stats',
        choices=['auto'],
        help='take mean and standard deviation from a sample of the training images',
    )
    return parser.parse_args(argv)


def apply_arguments(cfg: Any, args: argparse.Namespace) -> None:
    """Turn the arguments of this verb into config values."""
    if args.init:
        from mmpatchmix.checkpoints.sealing import find_good_checkpoint
        from mmpatchmix.cli.arguments import set_initial_weights

        begun = find_good_checkpoint(cfg.work_dir)[0] if args.resume == 'auto' else args.resume
        set_initial_weights(cfg, args.init, begun and str(begun))
    if args.contact_sheet and not args.dry_run:
        raise ValueError('--contact-sheet belongs to --dry-run; a run draws mixed.png by itself.')
    if args.stats:
        from mmpatchmix.cli.stats import set_stats

        set_stats(cfg)
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
    if args.resume:
        if args.resume != 'auto' and not Path(args.resume).is_file():
            raise FileNotFoundError(
                f'--resume: there is no checkpoint {args.resume}. Without a path, --resume takes '
                'the last one of the work dir.'
            )
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    if args.change_schedule:
        hook = (cfg.get('default_hooks') or {}).get('exact_resume')
        if not args.resume or not hook:
            raise ValueError(
                '--change-schedule belongs to --resume, and needs default_hooks.exact_resume.'
            )
        hook.change_schedule = True


def main(argv: Sequence[str] | None = None) -> None:
    """Check, build, tell, and train."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Do what the arguments say."""
    # Here, not above: importing takes seconds, and --help is to answer at once.
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()  # before what it silences is imported
    from mmengine.dist import is_main_process

    from mmpatchmix.checkpoints.sealing import find_checkpoints, find_good_checkpoint
    from mmpatchmix.cli.check_run import check_run, run_one_step
    from mmpatchmix.cli.describe_run import describe_run
    from mmpatchmix.cli.verb import build_runner
    from mmpatchmix.cli.work_dir import settle_work_dir
    from mmpatchmix.report.sheets import check_picture_name, draw_views, save_picture

    if args.contact_sheet:
        check_picture_name(args.contact_sheet)

    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        args.resume = 'auto'  # --max-restarts of torchrun.sh: the run has begun before
    cfg = load_config(args)
    apply_arguments(cfg, args)
    set_trackers(cfg, [] if args.dry_run else args.track)
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-dry-run-') as scratch:
        work_dir = cfg.work_dir
        if args.dry_run:
            cfg.work_dir = scratch
        elif not cfg.get('resume'):
            settle_work_dir(work_dir, args.overwrite)
        elif args.resume == 'auto' and not find_checkpoints(work_dir):
            print(f'--resume: {work_dir} has no checkpoint yet; starting from the beginning')
        runner = build_runner(cfg, args.verbose)
        check_run(runner)
        recipe = '\n'.join(describe_run(runner)).replace(cfg.work_dir, work_dir)
        runner.logger.info(f'{Path(args.config).stem}\n{recipe}')
        if args.dry_run:
            if args.contact_sheet and is_main_process():
                save_picture(draw_views(runner), args.contact_sheet)
            result = run_one_step(runner)
    if not args.dry_run:
        try:
            runner.train()
        except KeyboardInterrupt as error:
            last, _ = find_good_checkpoint(work_dir)
            way_on = f': --resume continues from {last}' if last else ' before any checkpoint'
            raise KeyboardInterrupt(way_on) from error
    elif is_main_process():
        print('one step: ' + ', '.join(f'{name} {value:.4g}' for name, value in result.items()))
        written = args.contact_sheet or 'nothing'
        print(f'Everything builds and trains; {written} was written.')
