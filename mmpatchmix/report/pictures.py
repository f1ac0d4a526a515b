"""The pictures of a run: by name, what draws each from a Runner."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.evaluation.features import evaluation_mode, feature_function, get_label
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.report import feature_figures
from mmpatchmix.report.detection_figure import draw_found_objects, is_detection
from mmpatchmix.report.feature_figures import draw_similarity
from mmpatchmix.report.sheets import draw_mixed, to_picture

# Rows or columns of a picture.
NUM_SHOWN = 8

# Others of its own class that an image is compared with.
_NUM_ALIKE = 3

# Images and draws for the shares of mixes.
_NUM_MIXED, _NUM_DRAWS = 64, 8


@dataclass
class Sample:
    """Images and what a network makes of them.

    Attributes:
        pictures: ``(N, 3, H, W)`` in [0, 1], on the CPU.
        inputs: ``(N, C, H, W)``, normalised, on the device.
        features: ``(N, D)``, of length 1, on the CPU.
        groups: ``(N,)`` int64, classes, or clusters of the features without labels.
        names: Of the groups, by number.
        labelled: Whether groups are classes.
    """

    pictures: Tensor
    inputs: Tensor
    features: Tensor
    groups: Tensor
    names: Sequence[str]
    labelled: bool


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
    curves = {m: calibrate(*predict_shares(model, images, m, _NUM_DRAWS)) for m in mixes}
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


# More images make a map no clearer, and pictures are drawn while a run waits.
NUM_IMAGES, NUM_CLASSES, NUM_CLUSTERS = 400, 20, 10

_BATCH = 64


def take_sample(runner: Runner, most: int = NUM_IMAGES) -> Sample:
    """Read images of the evaluation, spread evenly, and compute their features.

    Args:
        runner: With an evaluation during training or after it, and a model with features.
        most: Images at most; of at most 20 classes.

    Raises:
        ValueError: If there is no evaluation.
    """
    cfg = runner.cfg
    loop = runner.val_loop if cfg.get('val_cfg') else runner.test_loop if cfg.get('test_cfg') else 0
    if not loop:
        raise ValueError('the config has no evaluation (val_cfg, test_cfg) to take images from.')
    model, dataset = unwrap_model(runner.model), loop.dataloader.dataset
    chosen = [dataset[index] for index in choose_images(dataset, most)]
    labels = torch.tensor([get_label(sample.get('data_samples')) for sample in chosen])
    features, inputs = compute_features(model, chosen)
    labelled = bool((labels >= 0).all())
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    if not labelled:
        from sklearn.cluster import KMeans  # takes a second to import

        number = min(NUM_CLUSTERS, len(chosen))
        labels = torch.from_numpy(
            KMeans(number, n_init=1, random_state=0).fit_predict(features.numpy())
        ).long()
        classes = [f'cluster {index + 1}' for index in range(number)]
    preprocessor = model.data_preprocessor
    mean, std = preprocessor.mean.cpu(), preprocessor.std.cpu()
    pictures = to_picture(inputs.float().cpu(), mean, std).clamp(0, 1)
    names = [
        str(classes[index]) if index < len(classes) else f'class {index}'
        for index in range(int(labels.max()) + 1)
    ]
    return Sample(pictures, inputs, features, labels, names, labelled)


def choose_images(dataset: Any, most: int) -> list[int]:
    """Choose images spread evenly over a data set, of 20 classes where there are more."""
    candidates = np.arange(len(dataset))
    if hasattr(dataset, 'get_gt_labels') and (getattr(dataset, 'metainfo', None) or {}).get(
        'labelled', True
    ):
        labels = np.asarray(dataset.get_gt_labels())
        classes = np.unique(labels)
        if len(classes) > NUM_CLASSES:
            kept = classes[np.linspace(0, len(classes) - 1, NUM_CLASSES).astype(int)]
            candidates = candidates[np.isin(labels, kept)]
    number = min(most, len(candidates))
    return candidates[np.arange(number) * len(candidates) // number].tolist()


@torch.no_grad()
def compute_features(model: nn.Module, samples: Sequence[dict]) -> tuple[Tensor, Tensor]:
    """Compute features ``(N, D)`` of length 1 of data set samples, and return their inputs."""
    forward, inputs, features = feature_function(model), [], []
    with evaluation_mode(model):
        for start in range(0, len(samples), _BATCH):
            batch = pseudo_collate(samples[start : start + _BATCH])
            batch['inputs'] = torch.stack([*batch['inputs']])
            inputs.append(model.data_preprocessor(dict(batch), False)['inputs'])
            features.append(F.normalize(forward(batch).float(), dim=1).cpu())
    return torch.cat(features), torch.cat(inputs)


@torch.no_grad()
def attend_class_token(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the attention of the class token in the last block.

    Args:
        model: With a ViT of mmpretrain's, of which the momentum encoder's comes first.
        inputs: ``(N, C, H, W)``, normalised, on the model's device.

    Returns:
        Tensor: ``(N, heads, rows, columns)`` on the CPU: shares of the patches; what is left to 1
        goes to the class token itself.

    Raises:
        ValueError: If there is no such ViT.
    """
    encoder = getattr(model, 'momentum_encoder', None) or model
    vit = getattr(encoder, 'backbone', None)
    if getattr(vit, 'cls_token', None) is None:
        raise ValueError(f'{type(model).__name__} has no ViT with a class token.')
    layer, seen = vit.layers[-1], []
    handle = layer.ln1.register_forward_hook(lambda *args: seen.append(args[-1]))
    try:
        with evaluation_mode(model), torch.compiler.set_stance('force_eager'):
            vit(inputs)
    finally:
        handle.remove()
    attn, tokens = layer.attn, seen[0]  # (N, T, D)
    query, key, _ = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    # (N, heads, T): of the first token only.
    scores = torch.einsum('nhd,nthd->nht', query[:, 0], key) * attn.head_dims**-0.5
    weights = scores.float().softmax(-1)[..., vit.num_extra_tokens :]
    height, width = inputs.shape[-2:]
    rows = round(height / (height * width / weights.shape[-1]) ** 0.5)
    return weights.unflatten(-1, (rows, -1)).cpu()
