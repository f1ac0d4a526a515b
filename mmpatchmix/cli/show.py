"""Draw a picture: what goes into a network, or what a checkpoint makes of images.

mmpatchmix show mix patchmix_vit-digits                    # sources, mixtures, origins, target
mmpatchmix show views patchmix_vit-s_folder --data-root PATH
mmpatchmix show map patchmix_vit-digits work_dirs/digits   # a checkpoint, or a work dir's last
mmpatchmix show similar patchmix_vit-digits RUN/epoch_20.pth RUN/epoch_80.pth

mix, views: a few training images, mixed and augmented as the model sees them.
neighbours, attention, similar, map, similarity_matrix, shares: held-out images as a checkpoint
sees them: the nearest of each, where the class token looks, how similar one is to others (by one
or several checkpoints), a t-SNE, all similarities ordered by class, predicted shares of mixes.
detections, class_precision: objects as annotated and as found, AP of each class, of a detector.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpatchmix.cli.arguments import add_common_arguments, load_config, new_parser
from mmpatchmix.cli.verb import exit_on_user_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = ('mix', 'views')
OF_FEATURES = ('neighbours', 'attention', 'similar', 'map', 'similarity_matrix', 'shares')
OF_DETECTORS = ('detections', 'class_precision')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('show', __doc__)
    parser.add_argument('what', choices=INPUTS + OF_FEATURES + OF_DETECTORS, help='see above')
    add_common_arguments(parser)
    parser.add_argument(
        'checkpoints',
        nargs='*',
        metavar='checkpoint',
        help='of the same config, or a work dir for its last; mix and views need none',
    )
    parser.add_argument('--out', metavar='FILE', help='the PNG file; WHAT.png by default')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, write, and say where."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        show(args)


def show(args: argparse.Namespace) -> None:
    """Do what the arguments say.

    Raises:
        ValueError: If checkpoints are missing or too many, or the model has no such picture.
    """
    wanted = {True: (0, 0), False: (1, 1)}[args.what in INPUTS]
    wanted = (1, 8) if args.what == 'similar' else wanted
    if not wanted[0] <= len(args.checkpoints) <= wanted[1]:
        number = {(0, 0): 'no checkpoint', (1, 1): 'one checkpoint'}.get(wanted, '1 to 8')
        raise ValueError(f'show {args.what} takes {number}; there are {len(args.checkpoints)}.')
    # Here, not above: importing takes seconds, and --help is to answer at once.
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()  # before what it silences is imported
    from mmpatchmix.cli.verb import build_runner
    from mmpatchmix.cli.work_dir import find_checkpoint
    from mmpatchmix.report.sheets import check_picture_name, save_picture

    path = check_picture_name(args.out or f'{args.what}.png')
    checkpoints = [find_checkpoint(checkpoint) for checkpoint in args.checkpoints]
    cfg = load_config(args)
    if args.work_dir is None:
        cfg.work_dir = str(Path(cfg.work_dir) / 'show')  # the log
    if args.what == 'class_precision':
        cfg.test_evaluator.classwise = True
    runner = build_runner(cfg, args.verbose)
    save_picture(draw(runner, args.what, checkpoints), path)
    print(f'written to {path}')


def draw(runner: Any, what: str, checkpoints: Sequence[str]) -> 'Figure':
    """Draw one picture.

    Args:
        runner: Of the config.
        what: Which picture.
        checkpoints: Files.

    Raises:
        ValueError: If the model has no such picture.
    """
    from mmpatchmix.evaluation.features import load_model
    from mmpatchmix.report import pictures
    from mmpatchmix.report.detection_figure import draw_class_precision, is_detection
    from mmpatchmix.report.pictures import take_sample
    from mmpatchmix.report.sheets import draw_views

    if what in INPUTS:
        return {'mix': pictures.draw_mix, 'views': draw_views}[what](runner)
    if is_detection(runner) != (what in OF_DETECTORS):
        kind = 'a detector' if is_detection(runner) else 'no detector'
        raise ValueError(f'the config describes {kind}, of which there is no picture "{what}".')
    if what == 'class_precision':
        runner.load_checkpoint(checkpoints[0])
        return draw_class_precision(runner.test())
    samples = {}
    for checkpoint in checkpoints:
        load_model(runner, checkpoint)
        if what == 'similar':
            samples[checkpoint] = take_sample(runner)
    if what == 'similar':
        return pictures.draw_similar_by(samples)
    return next(figure for _, figure in pictures.draw_pictures(runner, [what]))
