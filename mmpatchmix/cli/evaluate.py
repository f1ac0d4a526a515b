"""Evaluate a checkpoint: kNN, linear, few labels, similarity, geometry, fine-tuning.

mmpatchmix evaluate patchmix_vit-digits_plain work_dirs/digits --finetune finetune/vit-digits_plain

Features are extracted once and kept in the work dir; they are used again only for the same
checkpoint, data and transform. Writes evaluation.json and similarity.png, prints one table.
"""

import argparse
import json
import re
from functools import partial
from pathlib import Path

import rich
from rich.table import Column, Table

from mmpatchmix import __version__
from mmpatchmix.cli.arguments import add_common_arguments, load_config
from mmpatchmix.cli.verb import build_runner, check_config_of_run, find_checkpoint, make_verb

# Evaluations, and rows of the table: names of metrics as regular expressions, and titles that may
# refer to groups by number and to other metrics with the same prefix by name.
JUDGEMENTS = ('knn', 'linear', 'low-shot', 'similarity', 'geometry')
ROWS = {
    r'pixels/top1_k(\d+)': 'kNN on raw pixels, k={0}',
    r'pixels_(\w+)/top1_k(\d+)': 'kNN on raw pixels, k={1}, queries {0}',
    r'knn/top1_k(\d+)': 'kNN on features, k={0}',
    r'knn_(\w+)/top1_k(\d+)': 'kNN on features, k={1}, queries {0}',
    'linear/top1': 'linear on features, lr {lr:g}',
    r'lowshot_([\d.]+)pct/top1': '{0} % of labels ({num_images:g} images)',
    'finetune/top1': 'fine-tuned, {epochs:g} epochs',
    'similarity/auroc': 'AUROC, same class nearer than another (chance 0.5)',
    r'similarity/precision_at_(\d+)': 'same class among the {0} nearest',
    r'similarity/share_error_m(\d)': 'share of a mix of {0}, error of the curve',
    'geometry/rank_me': 'RankMe, of {width:g} dimensions',
    'geometry/lidar': 'LiDAR, of {width:g} dimensions, {lidar_images:g} images',
    'geometry/alignment': 'alignment of two views (0 best, 2 unrelated)',
    'geometry/uniformity': 'uniformity (lower is better, 0 collapsed)',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_common_arguments(parser)
    add = parser.add_argument
    add('checkpoint', help='checkpoint of the same config, or a work dir for its last')
    what = dict(nargs='+', choices=JUDGEMENTS, default=JUDGEMENTS)
    add('--what', **what, help='evaluations of frozen features (default: all)')
    shares = dict(nargs='+', type=float, default=[0.01, 0.1])
    add('--fractions', **shares, help='shares of labels for low-shot (default: 0.01 0.1)')
    add('--linear-epochs', type=int, default=100, help='of the linear probe (default: 100)')
    add('--finetune', metavar='CONFIG', help='also fine-tune by this config, as it is')


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate, write, and print."""
    import mmengine
    import torch

    from mmpatchmix.cli.train import clear_earlier_run
    from mmpatchmix.evaluation import judge, linear_probe, low_shot
    from mmpatchmix.report.feature_figures import draw_similarity

    if args.linear_epochs < 1 or not all(0 < share <= 1 for share in args.fractions):
        raise ValueError('--linear-epochs must be at least 1, --fractions above 0 and at most 1.')
    checkpoint = find_checkpoint(args.checkpoint)
    args.work_dir = args.work_dir or str(Path(checkpoint).with_name('evaluation'))  # for its report
    cfg, work_dir, second = load_config(args), Path(args.work_dir), None
    if args.finetune:  # read now, so that a wrong name is an error at once
        own = {'config': args.finetune, 'work_dir': str(work_dir / 'finetune'), 'cfg_options': []}
        second = load_config(argparse.Namespace(**vars(args) | own))
        check_config_of_run(second, checkpoint)
    if not cfg.get('test_cfg'):
        raise ValueError(f'{args.config} has no evaluation (test_cfg and test_dataloader).')
    runner = build_runner(cfg, args.verbose, checkpoint)
    train, test = judge.load_features(runner, checkpoint)
    labelled = train.labels is not None and test.labels is not None
    what = set(args.what) - (set() if labelled else {'knn', 'linear', 'low-shot'})
    metrics = runner.test_loop.judge(test, train) if 'knn' in what else {}
    if second is not None:
        if mmengine.dist.is_main_process():
            clear_earlier_run(second.work_dir)
        metrics |= judge.finetune(second, checkpoint, partial(build_runner, verbose=args.verbose))
    if not mmengine.dist.is_main_process():  # the rest is last: no rank waits for it
        return
    if 'linear' in what:
        device = next(runner.model.parameters()).device
        metrics |= linear_probe(train, test, num_epochs=args.linear_epochs, device=device)
    for fraction in args.fractions if 'low-shot' in what else ():
        metrics |= low_shot(train, test, fraction)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / 'similarity.png').unlink(missing_ok=True)  # of an earlier evaluation
    if 'similarity' in what:
        figures, *curves = judge.judge_similarity(runner, test)
        metrics |= figures
        if figures:
            draw_similarity(*curves).savefig(work_dir / 'similarity.png')
    if 'geometry' in what:
        metrics |= judge.judge_geometry(runner, test)
    versions = dict(mmpatchmix=__version__, torch=torch.__version__, mmengine=mmengine.__version__)
    content = dict(config=args.config, checkpoint=checkpoint, finetune=args.finetune)
    content |= dict(versions=versions, metrics=metrics)
    path = work_dir / 'evaluation.json'
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    print()
    rich.print(make_table(metrics))
    print(f'\nwritten to {path}')


def make_table(metrics: dict[str, float]) -> Table:
    """Lay out metrics in rows of title, value (top-1 in percent) and top-5."""
    table, last = Table('', *(Column(f'top-{n} %', justify='right') for n in (1, 5)), box=None), ''
    for pattern, title in ROWS.items():
        for found in filter(None, map(re.compile(pattern).fullmatch, metrics)):
            name, group = found[0], found[0].partition('/')[0]
            near = {n.partition('/')[2]: v for n, v in metrics.items() if n.startswith(group)}
            part = 'top1' if 'top1' in name else group  # a blank row stands between the parts
            if last not in ('', part):
                table.add_row('', '', '')
            last, text = part, format(metrics[name], '.1f' if part == 'top1' else '.3g')
            if f'{name}_std' in metrics:
                text += f' ± {metrics[f"{name}_std"]:.1f}'
            five = name.replace('top1', 'top5')
            top5 = f'{metrics[five]:.1f}' if five in metrics and five != name else ''
            table.add_row(title.format(*found.groups(), **near), text, top5)
    return table


parse_args, main = make_verb('evaluate', __doc__, add_arguments, evaluate)
