"""Draw a picture of the inputs of a network, or of a checkpoint's features, into a PNG file.

mmpatchmix show mix patchmix_vit-digits                    # sources, mixtures, origins, target
mmpatchmix show views patchmix_vit-s_folder --data-root PATH
mmpatchmix show map patchmix_vit-digits_plain work_dirs/digits   # of a checkpoint or work dir
mmpatchmix show similar patchmix_vit-digits RUN/epoch_20.pth RUN/epoch_80.pth

mix, views: training images, mixed and augmented as in training.
neighbours, attention, similar, map, similarity_matrix, shares: held-out images with their nearest
neighbours, the attention of the class token, similarities to one image (of one or several
checkpoints), a t-SNE, all similarities ordered by class, and predicted shares of mixes.
detections, class_precision: annotated and detected objects, AP of each class, of a detector.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from mmpatchmix.cli.arguments import add_common_arguments, load_config
from mmpatchmix.cli.verb import build_runner, find_checkpoint, make_verb

INPUTS = ('mix', 'views')
OF_FEATURES = ('neighbours', 'attention', 'similar', 'map', 'similarity_matrix', 'shares')
OF_DETECTORS = ('detections', 'class_precision')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument('what', choices=INPUTS + OF_FEATURES + OF_DETECTORS, help='see above')
    add_common_arguments(parser)
    parser.add_argument('checkpoints', nargs='*', metavar='checkpoint', help='file or work dir')
    parser.add_argument('--out', metavar='FILE', help='the PNG file; default: WHAT.png')


def show(args: argparse.Namespace) -> None:
    """Build the Runner, draw one picture and write it."""
    fewest, most = (0, 0) if args.what in INPUTS else (1, 8 if args.what == 'similar' else 1)
    if not fewest <= (given := len(args.checkpoints)) <= most:
        raise ValueError(f'show {args.what} takes {fewest} to {most} checkpoints, not {given}.')
    from mmpatchmix.report.sheets import check_picture_name, save_picture

    path = check_picture_name(args.out or f'{args.what}.png')
    checkpoints = [find_checkpoint(checkpoint) for checkpoint in args.checkpoints]
    cfg = load_config(args, below='show')
    if args.what == 'class_precision':
        cfg.test_evaluator.update(classwise=True, metric='bbox')  # masks have the same names
    save_picture(draw(build_runner(cfg, args.verbose, *checkpoints), args.what, checkpoints), path)
    print(f'written to {path}')


def draw(runner: Any, what: str, checkpoints: Sequence[str]) -> Any:
    """Return the ``Figure`` of one picture of a Runner's model with the weights of checkpoints."""
    from mmpatchmix.evaluation.features import load_model
    from mmpatchmix.report import pictures
    from mmpatchmix.report.detection_figure import draw_class_precision, is_detection
    from mmpatchmix.report.sheets import draw_mix, draw_views

    if what in INPUTS:
        return (draw_mix if what == 'mix' else draw_views)(runner)
    if is_detection(runner) != (what in OF_DETECTORS):
        kind = 'a detector' if is_detection(runner) else 'no detector'
        raise ValueError(f'the config describes {kind}, which has no picture "{what}".')
    if what == 'class_precision':
        runner.load_checkpoint(checkpoints[0])
        return draw_class_precision(runner.test())
    samples = {}
    for checkpoint in checkpoints:
        load_model(runner, checkpoint)
        if what == 'similar':
            samples[checkpoint] = pictures.take_sample(runner)
    if what == 'similar':
        return pictures.draw_similar_by(samples)
    return next(figure for _, figure in pictures.draw_pictures(runner, [what]))


parse_args, main = make_verb('show', __doc__, add_arguments, show)
