"""Judge a pre-trained checkpoint: kNN, linear, few labels, similarity, geometry, fine-tuning.

mmpatchmix evaluate patchmix_vit-digits work_dirs/digits --finetune finetune/vit-digits

Features are extracted once and kept in the work dir; they are used again only for the same
checkpoint, data and transform. Writes evaluation.json and prints one table.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import add_common_arguments, load_config, new_parser
from mmpatchmix.cli.verb import exit_on_user_error

JUDGEMENTS = ('knn', 'linear', 'low-shot', 'similarity', 'geometry')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('evaluate', __doc__)
    add_common_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint of the same config, or a work dir for its last'
    )
    parser.add_argument(
        '--what',
        nargs='+',
        choices=JUDGEMENTS,
        default=list(JUDGEMENTS),
        help='which judgements of frozen features (default: all)',
    )
    parser.add_argument(
        '--fractions',
        nargs='+',
        type=float,
        default=[0.01, 0.1],
        help='shares of the labels for low-shot (default: 0.01 0.1)',
    )
    parser.add_argument(
        '--linear-epochs', type=int, default=100, help='length of the linear probe (default: 100)'
    )
    parser.add_argument(
        '--finetune', metavar='CONFIG', help='also fine-tune as this config or recipe says'
    )
    return parser.parse_args(argv)


def load_finetune_config(args: argparse.Namespace, work_dir: Path) -> Any:
    """Return the config of ``--finetune`` with the launcher, data and workers of this run."""
    own = {'config': args.finetune, 'work_dir': str(work_dir / 'finetune'), 'cfg_options': []}
    return load_config(argparse.Namespace(**vars(args) | own))


def main(argv: Sequence[str] | None = None) -> None:
    """Judge, write, and print."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Do what the arguments say."""
    # Here, not above: importing takes seconds, and --help is to answer at once.
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()  # before what it silences is imported
    from mmengine.dist import is_main_process

    from mmpatchmix.cli.verb import build_runner
    from mmpatchmix.cli.work_dir import clear_earlier_run, find_checkpoint
    from mmpatchmix.evaluation import judge

    cfg = load_config(args)
    checkpoint = find_checkpoint(args.checkpoint)
    if args.work_dir is None:
        cfg.work_dir = str(Path(cfg.work_dir) / 'evaluation')
    work_dir = Path(cfg.work_dir)
    # Read at once, so that a misspelt name is not found out at the end.
    second = load_finetune_config(args, work_dir) if args.finetune else None
    if not cfg.get('test_cfg'):
        raise ValueError(f'{args.config} describes no evaluation (test_cfg and test_dataloader).')

    build = partial(build_runner, verbose=args.verbose)
    runner = build(cfg)
    train, test = judge.load_features(runner, checkpoint)
    metrics = judge.judge_neighbors(runner, train, test) if 'knn' in args.what else {}
    if second is not None:
        if is_main_process():
            clear_earlier_run(second.work_dir)
        metrics |= judge.finetune(second, checkpoint, build)
    # Last, because the other ranks have nothing to do here and must not wait for it.
    if is_main_process():
        device = next(runner.model.parameters()).device
        metrics |= judge.judge_classifiers(
            train, test, args.what, args.fractions, args.linear_epochs, device
        )
        if 'similarity' in args.what:
            metrics |= judge.judge_similarity(runner, test, work_dir)
        if 'geometry' in args.what:
            metrics |= judge.judge_geometry(runner, test)
        about = dict(config=args.config, checkpoint=checkpoint, finetune=args.finetune)
        path, table = judge.write_report(work_dir, metrics, about)
        print(f'\n{table}\n\nwritten to {path}')
