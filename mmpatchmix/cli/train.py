"""Train a config: pre-training, linear probes, fine-tuning, detection.

mmpatchmix train patchmix_vit-digits
mmpatchmix train patchmix_vit-s_folder --data-root PATH --auto-scale-lr
mmpatchmix train CONFIG --dry-run          # print the recipe and train one step
mmpatchmix train CONFIG --resume           # continue from the last checkpoint
mmpatchmix train CONFIG --init CHECKPOINT  # start from a backbone, of ours or a public one
"""

import argparse
import os
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import (
    TRACKERS,
    add_common_arguments,
    load_config,
    set_epochs,
    set_initial_weights,
    set_precision,
    set_timm_backbone,
    set_trackers,
)
from mmpatchmix.cli.verb import build_runner, make_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_common_arguments(parser)
    add = parser.add_argument
    layouts = "ours, published PatchMix, MoCo v3, DINO, DINOv2, MAE, timm, a folder of HF's ViT"
    add('--init', metavar='CHECKPOINT', help=f'start the backbone from a checkpoint: {layouts}')
    add('--timm', metavar='NAME', help='ViT of timm as the backbone: DINOv3, EVA-02, SigLIP 2 ...')
    about = 'continue from PATH, or from the last checkpoint of the work dir'
    add('--resume', nargs='?', const='auto', metavar='PATH', help=about)
    add('--change-schedule', action='store_true', help='resume with another length or batch')
    add('--overwrite', action='store_true', help='replace an earlier run in the work dir')
    about = 'bfloat16 autocast, on GPUs and CPUs, or float32; pre-training chooses by device'
    add('--amp', action=argparse.BooleanOptionalAction, help=about)
    add('--seed', type=int, help='seed of all random numbers; rank r uses seed + r')
    about = 'scale the learning rate from the batch of the recipe to the actual batch'
    add('--auto-scale-lr', action='store_true', help=about)
    add('--epochs', type=int, help='length of the run; schedules by epoch are scaled with it')
    add('--dry-run', action='store_true', help='print the recipe, train one step, start no run')
    about = 'with --dry-run, draw augmented views as the model gets them into this PNG file'
    add('--contact-sheet', metavar='FILE', help=about)
    add('--track', action='append', default=[], choices=TRACKERS, help='log to this tracker, too')
    add('--stats', choices=['auto'], help='set mean and std from a sample of the training images')


def apply_arguments(cfg: Any, args: argparse.Namespace) -> None:
    """Set the config values of the arguments of this verb."""
    if args.contact_sheet and not args.dry_run:
        raise ValueError('--contact-sheet needs --dry-run; a run draws mixed.png by itself.')
    if args.timm:
        set_timm_backbone(cfg, args.timm)
    if args.stats:
        from mmpatchmix.cli.stats import set_stats

        set_stats(cfg)
    if args.init:
        from mmpatchmix.checkpoints.sealing import find_good_checkpoint

        begun = find_good_checkpoint(cfg.work_dir)[0] if args.resume == 'auto' else args.resume
        set_initial_weights(cfg, args.init, begun and str(begun))
    if args.epochs is not None:
        set_epochs(cfg, args.epochs)
    set_precision(cfg, args.amp)
    if args.seed is not None:
        cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...).')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        if args.resume != 'auto' and not Path(args.resume).is_file():
            raise FileNotFoundError(f'--resume: there is no checkpoint {args.resume}.')
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    if args.change_schedule:
        hook = (cfg.get('default_hooks') or {}).get('exact_resume')
        if not args.resume or not hook:
            raise ValueError('--change-schedule needs --resume and default_hooks.exact_resume.')
        hook.change_schedule = True


def find_earlier_run(work_dir: str | Path) -> list[Path]:
    """Return the files and folders of a run; none if it failed before it logged a metric."""
    found = [path for name in ('*.pth', 'last_checkpoint') for path in Path(work_dir).glob(name)]
    logs = [path for path in Path(work_dir).glob('*/vis_data/*.json') if path.stat().st_size]
    return found + sorted({path.parents[1] for path in logs})


def clear_earlier_run(work_dir: str | Path) -> None:
    """Remove the files and folders of :func:`find_earlier_run`."""
    for path in find_earlier_run(work_dir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def prepare_work_dir(work_dir: str | Path, overwrite: bool) -> None:
    """Lock the folder of a new run; refuse or remove an earlier run; on the first rank only."""
    from mmpatchmix.checkpoints.sealing import find_good_checkpoint
    from mmpatchmix.files import lock_folder

    if int(os.environ.get('RANK', 0)) != 0:
        return
    lock_folder(work_dir)
    if find_earlier_run(work_dir) and not overwrite:
        last, _ = find_good_checkpoint(work_dir)
        raise ValueError(
            f'{work_dir} holds an earlier run{f" (last checkpoint: {last})" if last else ""}. '
            'Continue it with --resume, write elsewhere with --work-dir DIR, or replace it with '
            '--overwrite.'
        )
    clear_earlier_run(work_dir)


def train(args: argparse.Namespace) -> Path | None:
    """Build, check and describe a run; train and return the last checkpoint, or take one step."""
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        args.resume = 'auto'  # restarted by --max-restarts of torchrun.sh
    cfg = load_config(args)  # imports the stack
    from mmengine.dist import is_main_process

    from mmpatchmix.checkpoints.sealing import find_checkpoints, find_good_checkpoint
    from mmpatchmix.cli.check_run import check_run, run_one_step
    from mmpatchmix.cli.describe_run import describe_run
    from mmpatchmix.report.run_report_hook import RunReportHook
    from mmpatchmix.report.sheets import check_picture_name, draw_views, save_picture

    if args.contact_sheet:
        check_picture_name(args.contact_sheet)
    start = cfg.get('load_from')
    apply_arguments(cfg, args)
    set_trackers(cfg, [] if args.dry_run else args.track)
    work_dir = cfg.work_dir
    with tempfile.TemporaryDirectory() if args.dry_run else nullcontext(work_dir) as cfg.work_dir:
        if not args.dry_run and not cfg.get('resume'):
            prepare_work_dir(work_dir, args.overwrite)
        elif args.resume == 'auto' and not find_checkpoints(work_dir):
            print(f'--resume: {work_dir} has no checkpoint yet; starting from the beginning')
        runner = build_runner(cfg, args.verbose)
        if (runner.auto_scale_lr or {}).get('enable'):  # mmengine counts one batch per step
            runner.auto_scale_lr = scaling = dict(runner.auto_scale_lr)
            scaling['base_batch_size'] /= cfg.optim_wrapper.get('accumulative_counts', 1)
        runner.start_from = start if args.resume == 'auto' else None
        check_run(runner)
        lines, facts = describe_run(runner)
        text = '\n'.join([Path(args.config).stem, *lines])
        runner.logger.info(text.replace(cfg.work_dir, work_dir))
        if args.dry_run:
            if args.contact_sheet and is_main_process():
                save_picture(draw_views(runner), args.contact_sheet)
            result = run_one_step(runner)
            if is_main_process():
                text = ', '.join(f'{name} {value:.4g}' for name, value in result.items())
                written = args.contact_sheet or 'no run'
                print(f'one step: {text}\nEverything builds and trains; {written} was written.')
            return None
    for hook in runner.hooks:
        if isinstance(hook, RunReportHook):
            hook.described = facts
    try:
        runner.train()
    except KeyboardInterrupt as error:
        last, _ = find_good_checkpoint(work_dir)
        hint = f': --resume continues from {last}' if last else ' before any checkpoint'
        raise KeyboardInterrupt(hint) from error
    return find_good_checkpoint(work_dir)[0]


parse_args, main = make_verb('train', __doc__, add_arguments, train)
