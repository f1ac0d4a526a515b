#!/usr/bin/env python
"""Evaluate a checkpoint as its config says: kNN, classification accuracy, COCO AP.

python tools/test.py configs/patchmix_vit-digits.py work_dirs/patchmix_vit-digits/epoch_70.pth
"""

import argparse
import json
import sys
from pathlib import Path

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()

from mmengine.dist import is_main_process  # noqa: E402

from mmpatchmix.cli.check_config import check_config  # noqa: E402
from mmpatchmix.cli.launch import (  # noqa: E402
    add_common_arguments,
    build_runner,
    exit_on_user_error,
    load_config,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint written by tools/train.py')
    parser.add_argument('--out', help='write the metrics to this JSON file')
    return parser.parse_args()


def main() -> None:
    """Load, evaluate, and print a table."""
    args = parse_args()
    cfg = load_config(args)
    check_config(cfg)
    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f'there is no checkpoint {args.checkpoint}.')
    if not cfg.get('test_cfg'):
        raise ValueError(f'{args.config} describes no evaluation (test_cfg and test_dataloader).')
    if args.work_dir is None:
        cfg.work_dir = str(Path(cfg.work_dir) / 'test')  # beside the training run, not into it
    cfg.load_from, cfg.resume = args.checkpoint, False
    metrics = build_runner(cfg, args.verbose).test()
    if not is_main_process():
        return
    width = max(map(len, metrics), default=0)
    print('\n'.join(f'  {name:<{width}}  {value:8.4f}' for name, value in metrics.items()))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(metrics, indent=2) + '\n', encoding='utf-8')
        print(f'written to {args.out}')


if __name__ == '__main__':
    with exit_on_user_error(verbose='--verbose' in sys.argv):
        main()
