"""Print sizes and kinds of your images, and the values that a config needs of them.

mmpatchmix stats PATH                               # a folder, or a list of images
mmpatchmix stats PATH --values 0,4095 --channels 5  # mean and std under other settings

Reads a sample, spread evenly over all images; without --values, those that fit it become 0 and 255.
Mean and std are on the scale 0-255, as in configs; images of all sizes have the same weight.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mmpatchmix.cli.verb import make_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = parser.add_argument
    add('path', help='folder or list of the images')
    add('--channels', type=int, help='of an image; default: the most common number')
    add('--values', help='that become 0 and 255: dtype, LOW,HIGH or percentile,LOW,HIGH')
    add('--sample', type=int, default=300, metavar='N', help='images to read (default: 300)')


def print_stats(args: argparse.Namespace) -> None:
    """Print facts of a sample, mean and standard deviation, and how to train with them."""
    from mmpatchmix.cli.describe_run import describe_survey
    from mmpatchmix.datasets import ImageFolder, LoadAnyImage
    from mmpatchmix.datasets.load_any_image import EXTENSIONS
    from mmpatchmix.datasets.survey import sample_paths, survey_images

    if args.sample < 1:
        raise ValueError(f'--sample {args.sample} must be at least 1.')
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
    for path, reason in measured.unfit[:1]:
        print(f'  {len(measured.unfit)} do not fit, such as {path} ({reason})')
    if survey.kinds.keys() <= {(1, 'uint8'), (3, 'uint8')}:
        print('\nPhotographs train with configs/patchmix_vit-s_folder.py, all as RGB. Otherwise:')
    print(
        f'\nTo train, set PATCHMIX_CHANNELS={channels} PATCHMIX_VALUES={values} '
        'before configs/patchmix_vit-s_any.py, and\n'
        f'  model = dict(data_preprocessor=dict(mean={mean}, std={std}))\n'
        'in your config, or give --stats auto'
    )


def suggest_values(survey: Any) -> str:
    """Return ``--values`` that fit a ``Survey``: by its dtype, or the bits in use."""
    names = {name for _, name in survey.kinds}
    if names == {'uint8'}:
        return '0,1' if survey.high <= 1 else 'dtype'
    if survey.low >= 0 and all(name.startswith('uint') for name in names):
        return f'0,{2 ** max(8, int(survey.high).bit_length()) - 1}'
    return f'{survey.low:.17g},{survey.high:.17g}'  # exact


def show_progress(paths: Sequence[str]) -> Iterable[str]:
    """Yield paths and draw a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(paths, 'images', console=console, transient=True, disable=not sys.stderr.isatty())


def set_stats(cfg: Any) -> None:
    """Apply ``--stats auto``: set mean and std in a config to those of a sample of its images."""
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
    survey = survey_images(sample_paths(dataset, NUM_SAMPLED), scale, show=show_progress)
    mean, std = survey.mean_and_std()
    if not preprocessor.get('to_rgb', True) and not is_any:
        mean, std = mean[::-1], std[::-1]  # the network reads BGR
    preprocessor.update(mean=mean, std=std)


parse_args, main = make_verb('stats', __doc__, add_arguments, print_stats)
