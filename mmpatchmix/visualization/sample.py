"""Some held-out images, their features, and where the class token looks: what pictures show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpatchmix.evaluation.features import evaluation_mode, feature_function, get_label
from mmpatchmix.models import unwrap_model
from mmpatchmix.visualization.mixed_figure import to_picture

# More images make a map no clearer, and pictures are drawn while a run waits.
NUM_IMAGES, NUM_CLASSES, NUM_CLUSTERS = 400, 20, 10
_BATCH = 64


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
