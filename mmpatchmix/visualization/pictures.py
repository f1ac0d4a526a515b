"""The pictures of a run: by name, what draws each from a Runner."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure
from mmengine.dataset import default_collate
from mmengine.runner import Runner

from mmpatchmix.engine.random_states import random_states_kept
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.visualization import feature_figures
from mmpatchmix.visualization.detection_figure import draw_found_objects, is_detection
from mmpatchmix.visualization.mixed_figure import draw_mixed, to_picture
from mmpatchmix.visualization.sample import Sample, attend_class_token, take_sample
from mmpatchmix.visualization.similarity_figure import draw_similarity

# Rows or columns of a picture.
NUM_SHOWN = 8
# Others of its own class that an image is compared with.
_NUM_ALIKE = 3
# Images and draws for the shares of mixes.
_NUM_MIXED, _NUM_DRAWS = 64, 8


def draw_mix(runner: Runner, num_images: int = 6) -> Figure | None:
    """Mix a few training images as in training; None where the model does not mix."""
    preprocessor, dataset = unwrap_model(runner.model).data_preprocessor, _training_images(runner)
    with random_states_kept():
        size = min(num_images, len(dataset))
        step = len(dataset) // size
        batch = default_collate([dataset[index * step] for index in range(size)])
        inputs = preprocessor(batch, training=True)['inputs']
    mean, std = preprocessor.mean.cpu(), preprocessor.std.cpu()
    return draw_mixed(
        to_picture(inputs['view_2'].cpu(), mean, std),
        to_picture(inputs['mixed_view_2'].cpu(), mean, std),
        inputs['groups']['view_2'] if 'groups' in inputs else None,
        preprocessor.patch_size,
        inputs['mix_to_source'],
    )


def _training_images(runner: Runner) -> Any:
    if not isinstance(unwrap_model(runner.model), PatchMix):
        raise ValueError(
            f'only PatchMix mixes; the model is a {type(unwrap_model(runner.model)).__name__}.'
        )
    return runner.train_dataloader.dataset


def draw_neighbours(runner: Runner, sample: Sample) -> Figure:
    """Draw the nearest images of some, of as many groups as there is room for."""
    groups = sample.groups if sample.labelled else None
    return feature_figures.draw_neighbours(
        sample.pictures, sample.features, groups, choose_queries(sample), NUM_SHOWN
    )


def draw_attention(runner: Runner, sample: Sample) -> Figure:
    """Draw where the class token looks in some images."""
    rows = choose_queries(sample)
    attention = attend_class_token(unwrap_model(runner.model), sample.inputs[rows])
    return feature_figures.draw_attention(sample.pictures[rows], attention)


def draw_similar(runner: Runner, sample: Sample) -> Figure:
    """Draw how similar an image is to others."""
    return draw_similar_by({'': sample})


def draw_similar_by(samples: dict[str, Sample]) -> Figure:
    """Draw how similar an image is to others, by one or several checkpoints.

    Args:
        samples: Of the same images, by name of the checkpoint.
    """
    first = next(iter(samples.values()))
    query, *others = choose_queries(first, len(first.pictures))
    alike = [index for index in others if first.groups[index] == first.groups[query]]
    others = [index for index in others if first.groups[index] != first.groups[query]]
    others = alike[:_NUM_ALIKE] + others[: NUM_SHOWN - len(alike[:_NUM_ALIKE])]
    values = {name: s.features[others] @ s.features[query] for name, s in samples.items()}
    names = [first.names[group] for group in first.groups.tolist()]
    return feature_figures.draw_similar(
        first.pictures[query],
        first.pictures[others],
        values,
        [names[index] for index in others],
        names[query],
    )


def draw_map(runner: Runner, sample: Sample) -> Figure:
    """Draw a map of the images."""
    return feature_figures.draw_map(sample.features, sample.groups, sample.names)


def draw_matrix(runner: Runner, sample: Sample) -> Figure:
    """Draw the similarity of each image with each other."""
    return feature_figures.draw_similarity_matrix(sample.features, sample.groups, sample.names)


def draw_shares(runner: Runner, sample: Sample) -> Figure:
    """Draw predicted against true shares of mixes.

    Raises:
        ValueError: If the model does not mix.
    """
    # Here, for evaluation draws figures, too.
    from mmpatchmix.evaluation.similarity import calibrate, predict_shares

    _training_images(runner)
    model, images = unwrap_model(runner.model), sample.inputs[:_NUM_MIXED]
    mixes = [num_mix for num_mix in (2, 3) if num_mix <= len(images)]
    curves = {m: calibrate(predict_shares(model, images, m, _NUM_DRAWS)) for m in mixes}
    return draw_similarity(curves, None)


# Of a checkpoint, from the same sample. The names are those of the files.
PICTURES: dict[str, Callable[[Runner, Sample], Figure]] = {
    'neighbours': draw_neighbours,
    'attention': draw_attention,
    'similar': draw_similar,
    'map': draw_map,
    'similarity_matrix': draw_matrix,
    'shares': draw_shares,
}


def draw_pictures(
    runner: Runner, names: Sequence[str] = tuple(PICTURES)
) -> Iterator[tuple[str, Figure]]:
    """Draw pictures of what the model of a Runner makes of held-out images.

    Random states are kept.

    Args:
        runner: With a model that gives features, or a detector.
        names: Of :data:`PICTURES`; a detector has pictures of its own.

    Yields:
        Name and figure.
    """
    with random_states_kept():
        if is_detection(runner):
            yield 'detections', draw_found_objects(runner, NUM_SHOWN)
            return
        sample = take_sample(runner)
        for name in names:
            yield name, PICTURES[name](runner, sample)


def choose_queries(sample: Sample, number: int = NUM_SHOWN) -> list[int]:
    """Choose images of a sample, the first of each group before the second of any."""
    seen: dict[int, int] = {}
    ranks = []
    for index, group in enumerate(sample.groups.tolist()):
        seen[group] = seen.get(group, -1) + 1
        ranks.append((seen[group], group, index))
    return [index for *_, index in sorted(ranks)][: min(number, len(ranks))]
