"""Print what one's own images are, and the values that a config needs of them.

mmpatchmix stats PATH                               # a folder, or a list of images
mmpatchmix stats PATH --values 0,4095 --channels 5  # mean and std under other settings

A sample is read, spread evenly over all images. Mean and standard deviation are on the scale
0-255 that configs use; every image counts alike, whatever its size.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mmpatchmix.cli.arguments import add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('stats', __doc__)
    parser.add_argument('path', help='folder or list of the images')
    parser.add_argument('--channels', type=int, help='of an image; what most have by default')
    parser.add_argument(
        '--values',
        help='which values become 0 and 255: dtype, LOW,HIGH or percentile,LOW,HIGH; by default '
        'what fits the sample',
    )
    parser.add_argument(
        '--sample', type=int, default=300, metavar='N', help='images to read; 300 by default'
    )
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read, and print."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        print_stats(args)


def print_stats(args: argparse.Namespace) -> None:
    """Do what the arguments say.

    Raises:
        ValueError: If no image can be read, or none fits ``--channels`` and ``--values``.
    """
    if args.sample < 1:
        raise ValueError(f'--sample {args.sample} must be at least 1.')
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()
    from mmpatchmix.cli.describe_run import describe_survey
    from mmpatchmix.datasets import ImageFolder, LoadAnyImage
    from mmpatchmix.datasets.load_any_image import EXTENSIONS
    from mmpatchmix.datasets.survey import sample_paths, survey_images

    dataset = ImageFolder(args.path, labels=False, extensions=EXTENSIONS)
    paths = sample_paths(dataset, args.sample)
    survey = survey_images(paths, show=show_progress)
    print(f'{args.path}: {len(dataset):,} images, a sample of {len(paths):,}')
    facts = {**dataset.understood, **describe_survey(survey)}
    facts.pop('labels')
    print('\n'.join(f'  {name:<10}{fact}' for name, fact in facts.items()))
    if not survey.num_read:
        raise ValueError('none of the sampled images can be read')
    channels = args.channels or survey.kinds.most_common(1)[0][0][0]
    values = args.values or suggest_values(survey)
    measured = survey_images(paths, LoadAnyImage(channels, values).scale, show=show_progress)
    mean, std = measured.mean_and_std()
    print(f'\nWith {channels} channels and the values {values}, {measured.num_fit} images:')
    print(f'  mean {mean}\n  std  {std}')
    if measured.unfit:
        path, reason = measured.unfit[0]
        print(f'  {len(measured.unfit)} do not fit, such as {path} ({reason})')
    print(
        f'\nTo train, PATCHMIX_CHANNELS={channels} PATCHMIX_VALUES={values} '
        'before configs/patchmix_vit-s_any.py, and\n'
        f'  model = dict(data_preprocessor=dict(mean={mean}, std={std}))\n'
        'in a config of your own, or --stats auto'
    )


def suggest_values(survey: Any) -> str:
    """Return ``--values`` that a sample fits: what its kind of number holds, or the bits in use."""
    names = {name for _, name in survey.kinds}
    if names == {'uint8'}:
        return '0,1' if survey.high <= 1 else 'dtype'
    if survey.low >= 0 and all(name.startswith('uint') for name in names):
        return f'0,{2 ** max(8, int(survey.high).bit_length()) - 1}'
    return f'{survey.low:.6g},{survey.high:.6g}'


def show_progress(paths: Sequence) -> Iterator[Any]:
    """Pass paths on; count them on a terminal."""
    for number, path in enumerate(paths, 1):
        if sys.stderr.isatty():
            print(f'\r{number} of {len(paths)} images', end='', file=sys.stderr, flush=True)
        yield path
    if sys.stderr.isatty():
        print('\r\033[K', end='', file=sys.stderr, flush=True)


def set_stats(cfg: Any, progress: Any = show_progress) -> None:
    """Apply ``--stats auto``: measure mean and std of a sample of the training images.

    Args:
        cfg: The config; changed in place.
        progress: Wraps the loop to show its progress.

    Raises:
        ValueError: If the config trains on no folder or list of images.
    """
    from mmengine.registry import init_default_scope

    from mmpatchmix.datasets.survey import NUM_SAMPLED, as_rgb8, sample_paths, survey_images
    from mmpatchmix.registry import DATASETS, TRANSFORMS

    described = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    if described.get('type') != 'mmpatchmix.ImageFolder' or 'mean' not in preprocessor:
        raise ValueError(
            '--stats auto measures images of mmpatchmix.ImageFolder for a data_preprocessor with '
            f'mean and std; this config trains on {described.get("type")}.'
        )
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    dataset = DATASETS.build({**described, 'pipeline': []})
    load = described.pipeline[0]
    is_any = load['type'] == 'mmpatchmix.LoadAnyImage'
    scale = TRANSFORMS.build(load).scale if is_any else as_rgb8
    survey = survey_images(sample_paths(dataset, NUM_SAMPLED), scale, show=progress)
    mean, std = survey.mean_and_std()
    if not preprocessor.get('to_rgb', True) and not is_any:
        mean, std = mean[::-1], std[::-1]  # the network gets them as they are loaded: BGR
    preprocessor.update(mean=mean, std=std)
