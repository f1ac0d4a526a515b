"""Say what was understood of one's own images: from their names, and from a sample of them."""

from typing import Any

from mmengine.dist import is_main_process
from torch import nn

from mmpatchmix.datasets import LoadAnyImage
from mmpatchmix.datasets.survey import Survey, as_rgb8, sample_paths, survey_images

NUM_SAMPLED = 50
SECONDS = 10  # a large image may take one


def describe_images(dataset: Any, preprocessor: nn.Module | None = None) -> dict[str, str]:
    """Describe a folder or list of images; nothing for other data sets and on other ranks.

    Args:
        dataset: Of the train loader.
        preprocessor: Whose mean and std are compared with those of the sample.
    """
    # Not by its class: the train loader's is wrapped in one that seeds its samples.
    if not hasattr(dataset, 'understood') or not is_main_process():
        return {}
    load = dataset.pipeline.transforms[0]
    keeps_all = isinstance(load, LoadAnyImage)
    scale = load.scale if keeps_all else as_rgb8
    survey = survey_images(sample_paths(dataset, NUM_SAMPLED), scale, SECONDS)
    facts = {**dataset.understood, **describe_survey(survey)}
    lost = [kind for kind in survey.kinds if kind not in ((1, 'uint8'), (3, 'uint8'))]
    if lost and not keeps_all:
        facts['kinds'] += (
            '  <- this recipe makes 8-bit RGB of all: depth and further channels are lost; '
            'configs/patchmix_vit-s_any.py keeps them (docs/own-images.md)'
        )
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if survey.num_fit and mean is not None and std is not None:
        note = _compare(survey, mean.flatten().tolist(), std.flatten().tolist())
        facts |= {'mean, std': note} if note else {}
    return facts


def describe_survey(survey: Survey) -> dict[str, str]:
    """Describe sizes, kinds, values, and what is wrong with some of the images."""
    facts = {}
    if survey.num_read:
        sizes = [f'{height} x {width}' for height, width in (survey.smallest, survey.largest)]
        facts['sizes'] = ' to '.join(dict.fromkeys(sizes)) + ' pixels'
        facts['kinds'] = ', '.join(
            f'{count} x {channels} channel{"" if channels == 1 else "s"} {name}'
            for (channels, name), count in survey.kinds.most_common()
        )
        facts['values'] = f'{survey.low:g} to {survey.high:g}'
    for name, files in (('damaged', survey.damaged), ('unfit', survey.unfit)):
        if files:
            path, reason = files[0]
            total = survey.num_read + len(survey.damaged)
            facts[name] = f'{len(files)} of {total} sampled, such as {path} ({reason})'
    return facts


def _compare(survey: Survey, mean: list[float], std: list[float]) -> str | None:
    """Say where the sample, normalised, is far from a mean of 0 and a deviation of 1."""
    try:
        found_mean, found_std = survey.mean_and_std()
    except ValueError as error:
        return str(error)
    if len(found_mean) != len(mean):
        return None  # refused elsewhere
    channels = zip(found_mean, found_std, mean, std, strict=True)
    if all(abs(m - m0) < 2 * s0 and 1 / 3 < s / s0 < 3 for m, s, m0, s0 in channels):
        return None
    return (
        f'{_list(mean)}, {_list(std)}  <- those of the sample are {_list(found_mean)}, '
        f'{_list(found_std)}: --stats auto takes them'
    )


def _list(values: list[float]) -> str:
    return f'[{", ".join(f"{value:.4g}" for value in values)}]'
