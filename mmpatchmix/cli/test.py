"""Evaluate a checkpoint with the test loop of its config: kNN, classification accuracy, COCO AP.

mmpatchmix test patchmix_vit-digits work_dirs/patchmix_vit-digits
"""

import argparse
import json
import os
from pathlib import Path

from mmpatchmix.cli.arguments import add_common_arguments, load_config
from mmpatchmix.cli.verb import build_runner, find_checkpoint, make_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the config, or a work dir for its last')
    parser.add_argument('--out', help='write the metrics to this JSON file')


def evaluate(args: argparse.Namespace) -> None:
    """Load the checkpoint, evaluate, and print the metrics."""
    cfg = load_config(args, below='test')
    cfg.load_from, cfg.resume = find_checkpoint(args.checkpoint), False
    if not cfg.get('test_cfg'):
        raise ValueError(f'{args.config} has no evaluation (test_cfg and test_dataloader).')
    found = build_runner(cfg, args.verbose, cfg.load_from).test()
    metrics = {name: float(value) for name, value in found.items() if not getattr(value, 'ndim', 0)}
    if int(os.environ.get('RANK', 0)) != 0:
        return
    width = max(map(len, metrics), default=0)
    print('\n'.join(f'  {name:<{width}}  {value:8.4f}' for name, value in metrics.items()))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(metrics, indent=2) + '\n', encoding='utf-8')
        print(f'written to {args.out}')


parse_args, main = make_verb('test', __doc__, add_arguments, evaluate)
