"""Pictures of held-out images by name: a sample, its features, and the figure of each name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.evaluation.features import evaluation_mode, feature_function, get_label
from mmpatchmix.evaluation.similarity import calibrate, predict_shares
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.report import feature_figures
from mmpatchmix.report.detection_figure import draw_found_objects, find_evaluated, is_detection
from mmpatchmix.report.sheets import to_picture

PICTURES = ('neighbours', 'attention', 'similar', 'map', 'similarity_matrix', 'shares')
NUM_SHOWN = 8  # rows or columns of a picture
NUM_IMAGES, NUM_CLASSES, NUM_CLUSTERS = 400, 20, 10  # of a sample; keep pictures quick and legible
_BATCH = 64
_NUM_ALIKE = 3  # images of the same class in 'similar'
_NUM_MIXED, _NUM_DRAWS = 64, 8  # images and mixes for 'shares'


@dataclass
class Sample:
    """Held-out images and their features."""

    pictures: Tensor  # (N, 3, H, W) in [0, 1], on the CPU
    inputs: Tensor  # (N, C, H, W), normalised, on the device
    features: Tensor  # (N, D), L2-normalised, on the CPU
    groups: Tensor  # (N,) int64: classes, or clusters of the features without labels
    names: Sequence[str]  # of the groups
    labelled: bool  # groups are classes


def draw_pictures(runner: Runner, names: Sequence[str] = PICTURES) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures of held-out images, of a detector only ``'detections'``.

    Random states are kept. ``ValueError`` if the model or the config has no such picture.
    """
    with random_states_kept():
        if is_detection(runner):
            yield 'detections', draw_found_objects(runner, NUM_SHOWN)
            return
        sample = take_sample(runner)
        for name in names:
            yield name, _draw_picture(name, unwrap_model(runner.model), sample)


def _draw_picture(name: str, model: nn.Module, sample: Sample) -> Figure:
    rows = choose_queries(sample.groups)[:NUM_SHOWN]
    grouped = sample.features, sample.groups, sample.names
    if name == 'neighbours':
        groups = sample.groups if sample.labelled else None
        return feature_figures.draw_neighbours(sample.pictures, grouped[0], groups, rows, NUM_SHOWN)
    if name == 'attention':
        attention = attend_class_token(model, sample.inputs[rows])
        return feature_figures.draw_attention(sample.pictures[rows], attention)
    if name == 'similar':
        return draw_similar_by({'': sample})
    if name == 'map':
        return feature_figures.draw_map(*grouped)
    if name == 'similarity_matrix':
        return feature_figures.draw_similarity_matrix(*grouped)
    if not isinstance(model, PatchMix):
        raise ValueError(f'only PatchMix mixes; the model is a {type(model).__name__}.')
    images = sample.inputs[:_NUM_MIXED]
    mixes = [num_mix for num_mix in (2, 3) if num_mix <= len(images)]
    curves = {m: calibrate(*predict_shares(model, images, m, _NUM_DRAWS)) for m in mixes}
    return feature_figures.draw_similarity(curves, None)


def draw_similar_by(samples: Mapping[str, Sample]) -> Figure:
    """Draw the similarity of one image to others, from samples by name of the checkpoint."""
    first = next(iter(samples.values()))
    query, *others = choose_queries(first.groups)
    alike = [index for index in others if first.groups[index] == first.groups[query]][:_NUM_ALIKE]
    others = [index for index in others if first.groups[index] != first.groups[query]]
    others = (alike + others[: NUM_SHOWN - len(alike)]) or [query]  # itself if it is alone
    return feature_figures.draw_similar(
        first.pictures[query],
        first.pictures[others],
        {name: s.features[others] @ s.features[query] for name, s in samples.items()},
        [first.names[group] for group in first.groups[others].tolist()],
        first.names[int(first.groups[query])],
    )


def choose_queries(groups: Tensor) -> list[int]:
    """Return all images, the first of each group before the second of any."""
    ranks = (groups[:, None] == groups).tril(-1).sum(1)  # earlier images of the same group
    return np.lexsort((groups, ranks)).tolist()


def take_sample(runner: Runner) -> Sample:
    """Read images of the evaluation of a config, spread evenly, and compute their features."""
    model, dataset = unwrap_model(runner.model), find_evaluated(runner)
    if dataset is None:
        raise ValueError('the config has no evaluation (val_cfg, test_cfg) to take images from.')
    chosen = [dataset[index] for index in choose_images(dataset, NUM_IMAGES)]
    groups = torch.tensor([get_label(sample.get('data_samples')) for sample in chosen])
    features, inputs = compute_features(model, chosen)
    labelled = bool((groups >= 0).all())
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    if not labelled:
        from sklearn.cluster import KMeans  # takes a second to import

        names = [f'cluster {index + 1}' for index in range(min(NUM_CLUSTERS, len(chosen)))]
        clusters = KMeans(len(names), n_init=1, random_state=0).fit_predict(features.nan_to_num())
        groups = torch.from_numpy(clusters).long()
    names = [*map(str, names), *(f'class {n}' for n in range(len(names), int(groups.max()) + 1))]
    pictures = to_picture(inputs, model.data_preprocessor)
    return Sample(pictures, inputs, features, groups, names, labelled)


def choose_images(dataset: Any, most: int) -> list[int]:
    """Return indices spread evenly over a data set, of 20 classes if there are more."""
    candidates = np.arange(len(dataset))
    metainfo = getattr(dataset, 'metainfo', None) or {}
    if hasattr(dataset, 'get_gt_labels') and metainfo.get('labelled', True):
        labels = np.asarray(dataset.get_gt_labels())
        classes = np.unique(labels)
        if len(classes) > NUM_CLASSES:
            kept = classes[np.linspace(0, len(classes) - 1, NUM_CLASSES).astype(int)]
            candidates = candidates[np.isin(labels, kept)]
    number = min(most, len(candidates))
    return candidates[np.arange(number) * len(candidates) // number].tolist()


@torch.no_grad()
def compute_features(model: nn.Module, samples: Sequence[dict]) -> tuple[Tensor, Tensor]:
    """Return L2-normalised features ``(N, D)`` of data set samples, and the model's inputs."""
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
    """Compute the attention of the class token to patches in the last block of mmpretrain's ViT.

    The momentum encoder is preferred. ``inputs (N, C, H, W)`` are normalised, on the model's
    device; the weights ``(N, heads, rows, columns)`` are on the CPU. ``ValueError`` without a ViT.
    """
    encoder = getattr(model, 'momentum_encoder', None) or model
    vit = getattr(encoder, 'backbone', None)
    if getattr(vit, 'cls_token', None) is None:
        raise ValueError(f'{type(model).__name__} has no ViT with a class token.')
    layer, outputs = vit.layers[-1], []
    handle = layer.ln1.register_forward_hook(lambda *args: outputs.append(args[-1]))
    try:
        with evaluation_mode(model), torch.compiler.set_stance('force_eager'):
            vit(inputs)
    finally:
        handle.remove()
    attn, tokens = layer.attn, outputs[0]  # (N, T, D)
    query, key, _ = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    scores = torch.einsum('nhd,nthd->nht', query[:, 0], key) * attn.head_dims**-0.5  # (N, heads, T)
    strides = vit.patch_embed.projection.stride
    rows, columns = (side // step for side, step in zip(inputs.shape[-2:], strides, strict=True))
    weights = scores.float().softmax(-1)[..., -rows * columns :]  # the last tokens are patches
    return weights.unflatten(-1, (rows, columns)).cpu()
