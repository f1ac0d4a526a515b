"""Similarities of mixed images to their sources, and of images of the same class.

PatchMix (https://arxiv.org/abs/2306.12243) trains an image that holds 60 % of the patches of one
image and 40 % of another's to be similar to them in that proportion.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.evaluation.features import Features, evaluation_mode
from mmpatchmix.models import PatchMix
from mmpatchmix.models.mixing import group_shares, mix_patches
from mmpatchmix.models.patchmix import encode

# Images compared with all others at once, and images encoded at once.
_CHUNK, _BATCH = 512, 64


def draw_unequal_groups(num_patches: int, num_mix: int, generator: torch.Generator) -> Tensor:
    """Return groups ``(T,)`` int64 of sizes drawn uniformly among those without empty groups."""
    cuts = torch.randperm(num_patches - 1, generator=generator)[: num_mix - 1].sort().values + 1
    order = torch.randperm(num_patches, generator=generator)
    groups = torch.empty(num_patches, dtype=torch.int64)
    groups[order] = torch.bucketize(torch.arange(num_patches), cuts, right=True)
    return groups


@torch.no_grad()
def predict_shares(
    model: PatchMix, images: Tensor, num_mix: int, num_draws: int = 64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mix images in unequal shares and predict the shares from similarities, in evaluation mode.

    The prediction is the softmax, at the temperature of mixes, of the similarities between the
    query of the mix and the keys of its ``M = num_mix`` sources, M at least 2. ``images``
    ``(N, 3, H, W)`` are normalised and on the model's device, N at least M. Returned are, on the
    CPU, the true shares of each of the D draws ``(D, M)`` and the predicted ones ``(D, N, M)``.
    """
    if not 2 <= num_mix <= len(images):
        raise ValueError(f'{len(images)} images cannot make mixes of {num_mix} of them.')
    patch_size = model.data_preprocessor.patch_size
    num_patches = images.shape[2] * images.shape[3] // patch_size**2
    generator = torch.Generator().manual_seed(seed)
    encoder = model.momentum_encoder or model
    true, predicted = [], []
    with evaluation_mode(model):
        keys = encode(encoder.backbone, encoder.neck, [images], _BATCH)[0]
        keys = F.normalize(keys.float(), dim=1)
        # Of image n, the keys of n, n + 1, ... n + M - 1: (N, M, D)
        sources = torch.stack([keys.roll(-j, 0) for j in range(num_mix)], dim=1)
        for _ in range(num_draws):
            groups = draw_unequal_groups(num_patches, num_mix, generator)
            mixed = mix_patches(images, groups, patch_size)
            projections = encode(model.backbone, model.neck, [mixed], _BATCH)[0]
            queries = model.head.predict(projections)  # (N, D)
            logits = torch.einsum('nd,nmd->nm', queries, sources) / model.head.mix_temperature
            predicted.append(logits.softmax(1).cpu())
            true.append(group_shares(groups, num_mix))
    return torch.stack(true), torch.stack(predicted)


def calibrate(true: Tensor, predicted: Tensor, num_bins: int = 10) -> dict:
    """Compare the true and predicted shares of :func:`predict_shares`.

    Returned are ``curve``, one ``(true, predicted, standard deviation of predicted, count)`` per
    bin of the true share that is not empty; ``error``, the mean of the curve's distance from the
    diagonal, weighted by count; ``mean_abs_error`` and ``correlation`` (Pearson) of single
    predictions; ``constant_error``, the mean_abs_error of always ``1 / M``.
    """
    predicted = predicted.double()  # (D, N, M)
    true = true.double()[:, None].expand_as(predicted)
    bins = (true * num_bins).long().clamp(max=num_bins - 1)
    curve = []
    for number in bins.unique():
        part, mean = predicted[bins == number], true[bins == number].mean().item()
        curve.append((mean, part.mean().item(), part.std(correction=0).item(), len(part)))
    pairs = torch.stack([true.flatten(), predicted.flatten()])
    return dict(
        curve=curve,
        error=sum(abs(x - y) * count for x, y, _, count in curve) / true.numel(),
        mean_abs_error=(predicted - true).abs().mean().item(),
        correlation=torch.corrcoef(pairs)[0, 1].nan_to_num().item(),
        constant_error=(true - 1 / true.shape[2]).abs().mean().item(),
    )


def class_agreement(features: Features, ranks: tuple[int, ...] = (1, 10, 100)) -> dict[str, float]:
    """Measure how well the similarities of each image to all others order these by class.

    Returned are ``auroc``, the probability that an image of the same class is more similar than one
    of another class (mean over images; 0.5 by chance), and for each K of ``ranks`` below N
    ``precision_at_K``, the share of the K nearest that have the same class.
    """
    vectors, labels = F.normalize(features.features.float(), dim=1), features.labels
    aurocs, shares = [], {k: [] for k in ranks if k < len(labels)}
    images = torch.arange(len(labels))
    # In both directions: the mean counts equal similarities by half, whatever the order of files.
    for rows, columns in product(images.split(_CHUNK), (images, images.flip(0))):
        similarity = vectors[rows] @ vectors[columns].T  # (n, N)
        similarity[rows[:, None] == columns] = -torch.inf  # the image itself comes last
        order = columns[similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]]
        same = labels[rows, None] == labels[order]  # (n, N - 1), nearest first
        for k in shares:
            shares[k].append(same[:, :k].double().mean(1))
        positives = same.sum(1)
        negatives = same.shape[1] - positives
        # For each positive, the number of negatives that are less similar.
        after = negatives[:, None] - (~same).cumsum(1)
        aurocs.append((after * same).sum(1).double() / (positives * negatives))  # NaN without any
    result = {'auroc': torch.cat(aurocs).nanmean().item()}
    return result | {f'precision_at_{k}': torch.cat(shares[k]).mean().item() for k in shares}
