#!/usr/bin/env python
"""Judge a pre-trained checkpoint: kNN, linear on features, few labels, fine-tuning.

python tools/evaluate.py configs/patchmix_vit-digits.py work_dirs/digits \\
    --finetune configs/finetune/vit-digits.py

Features are extracted once and kept in the work dir; they are used again only for the same
checkpoint, data and transform. Writes evaluation.json and prints one table.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()

from mmengine.config import Config  # noqa: E402
from mmengine.dist import is_main_process  # noqa: E402
from mmengine.runner import find_latest_checkpoint  # noqa: E402

from mmpatchmix.cli.check_config import check_config  # noqa: E402
from mmpatchmix.cli.launch import (  # noqa: E402
    add_common_arguments,
    build_runner,
    clear_earlier_run,
    exit_on_user_error,
    load_config,
    set_data_root,
)
from mmpatchmix.evaluation.judge import (  # noqa: E402
    JUDGEMENTS,
    finetune,
    judge_classifiers,
    judge_neighbors,
    load_features,
    write_report,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint of the same config, or a work dir for its latest'
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
    parser.add_argument('--finetune', metavar='CONFIG', help='also fine-tune as this config says')
    return parser.parse_args()


def find_checkpoint(path: str) -> str:
    """The file itself, or the latest checkpoint of a work dir."""
    if not Path(path).is_dir():
        return path
    latest = find_latest_checkpoint(path)
    if latest is None:
        raise FileNotFoundError(f'there is no checkpoint in {path}; train first (make demo).')
    return latest


def load_finetune_config(args: argparse.Namespace, work_dir: Path) -> Config:
    """The config of ``--finetune`` with this tool's launcher, data and work dir."""
    if not Path(args.finetune).is_file():
        raise FileNotFoundError(f'--finetune: there is no config {args.finetune}.')
    config = Config.fromfile(args.finetune)
    check_config(config)
    if args.data_root:
        set_data_root(config, args.data_root)
    config.launcher, config.work_dir = args.launcher, str(work_dir / 'finetune')
    return config


def main() -> None:
    """Judge, write, and print."""
    args = parse_args()
    config = load_config(args)
    check_config(config)
    args.checkpoint = find_checkpoint(args.checkpoint)
    if args.work_dir is None:
        config.work_dir = str(Path(config.work_dir) / 'evaluation')
    work_dir = Path(config.work_dir)
    # Read at once, so that a misspelt name is not found out at the end.
    second = load_finetune_config(args, work_dir) if args.finetune else None
    if not config.get('test_cfg'):
        raise ValueError(f'{args.config} describes no evaluation (test_cfg and test_dataloader).')

    build = partial(build_runner, verbose=args.verbose)
    runner = build(config)
    train, test = load_features(runner, args.checkpoint)
    metrics = judge_neighbors(runner, train, test) if 'knn' in args.what else {}
    if second is not None:
        if is_main_process():
            clear_earlier_run(second.work_dir)
        metrics |= finetune(second, args.checkpoint, build)
    # Last, because the other ranks have nothing to do here and must not wait for it.
    if is_main_process():
        device = next(runner.model.parameters()).device
        metrics |= judge_classifiers(
            train, test, args.what, args.fractions, args.linear_epochs, device
        )
        about = dict(config=args.config, checkpoint=args.checkpoint, finetune=args.finetune)
        path, table = write_report(work_dir, metrics, about)
        print(f'\n{table}\n\nwritten to {path}')


if __name__ == '__main__':
    with exit_on_user_error(verbose='--verbose' in sys.argv):
        main()
