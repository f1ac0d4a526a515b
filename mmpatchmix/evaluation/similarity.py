"""Is a mix as similar to its images as their shares say? Do similar images share a class?

The first is what PatchMix trains for (https://arxiv.org/abs/2306.12243): an image that holds 60 %
of the patches of one image and 40 % of another's should be similar to them in that proportion.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.evaluation.features import Features, evaluation_mode
from mmpatchmix.models import PatchMix
from mmpatchmix.models.mixing import group_shares, mix_patches
from mmpatchmix.models.patchmix import encode

_CHUNK = 512
# Images that are encoded at once.
_BATCH = 64


class Shares(NamedTuple):
    """True and predicted shares of mixed images.

    Attributes:
        true: ``(D, M)``, the shares of each draw.
        predicted: ``(D, N, M)``, of each draw and image.
    """

    true: Tensor
    predicted: Tensor


def draw_unequal_groups(num_patches: int, num_mix: int, generator: torch.Generator) -> Tensor:
    """Assign positions to groups whose sizes are drawn evenly from all that leave none empty.

    Args:
        num_patches: ``T``, at least ``M``.
        num_mix: ``M``.
        generator: Source of randomness.

    Returns:
        Tensor: ``(T,)`` int64 from 0 to ``M - 1``.
    """
    cuts = torch.randperm(num_patches - 1, generator=generator)[: num_mix - 1].sort().values + 1
    order = torch.randperm(num_patches, generator=generator)
    groups = torch.empty(num_patches, dtype=torch.int64)
    groups[order] = torch.bucketize(torch.arange(num_patches), cuts, right=True)
    return groups


@torch.no_grad()
def predict_shares(
    model: PatchMix, images: Tensor, num_mix: int, num_draws: int = 64, seed: int = 0
) -> Shares:
    """Mix images in unequal shares and let the model tell the shares.

    The prediction is the softmax, at the head's temperature, of the similarities between the
    query of the mix and the keys of its ``M`` sources, in evaluation mode.

    Args:
        model: A pre-trained model.
        images: ``(N, 3, H, W)`` normalised, N at least ``num_mix``, on the model's device.
        num_mix: ``M``, at least 2.
        num_draws: D, how many sets of shares.
        seed: Of the draws.

    Returns:
        Shares: On the CPU.

    Raises:
        ValueError: If there are fewer images than one mix needs.
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
            logits = torch.einsum('nd,nmd->nm', queries, sources) / model.head.temperature
            predicted.append(logits.softmax(1).cpu())
            true.append(group_shares(groups, num_mix))
    return Shares(torch.stack(true), torch.stack(predicted))


def calibrate(shares: Shares, num_bins: int = 10) -> dict:
    """Compare predicted with true shares.

    Args:
        shares: Of :func:`predict_shares`.
        num_bins: Equal bins of the true share from 0 to 1.

    Returns:
        dict: ``curve``, one ``(true, predicted, standard deviation of predicted, count)`` per
        bin that is not empty; ``error``, the mean of the curve's distance from the diagonal,
        weighted by count; ``mean_abs_error`` of single predictions; ``correlation`` (Pearson)
        of single predictions; ``constant_error``, the mean_abs_error of always saying ``1 / M``.
    """
    predicted = shares.predicted.double()  # (D, N, M)
    true = shares.true.double()[:, None].expand_as(predicted)
    bins = (true * num_bins).long().clamp(max=num_bins - 1)
    curve = []
    for number in range(num_bins):
        chosen = bins == number
        if chosen.any():
            part = predicted[chosen]
            spread = part.std(correction=0).item()
            curve.append((true[chosen].mean().item(), part.mean().item(), spread, len(part)))
    count = sum(point[3] for point in curve)
    pairs = torch.stack([true.flatten(), predicted.flatten()])
    return dict(
        curve=curve,
        error=sum(abs(point[0] - point[1]) * point[3] for point in curve) / count,
        mean_abs_error=(predicted - true).abs().mean().item(),
        correlation=torch.corrcoef(pairs)[0, 1].nan_to_num().item(),
        constant_error=(true - 1 / true.shape[2]).abs().mean().item(),
    )


def class_agreement(features: Features, ranks: tuple[int, ...] = (1, 10, 100)) -> dict[str, float]:
    """Tell how well the similarity of images orders them by class.

    Args:
        features: ``(N, D)`` and labels; each image is compared with all others. Time and memory
            grow with N squared: 10,000 rows take some seconds.
        ranks: Counts of nearest neighbours.

    Returns:
        dict: ``auroc``, the probability that an image of the same class is more similar than one
        of another class (mean over images; 0.5 by chance), and ``precision_at_K``, the share of
        the K nearest that have the same class.

    Raises:
        ValueError: Without labels.
    """
    if features.labels is None:
        raise ValueError('Class agreement needs labels.')
    vectors, labels = F.normalize(features.features.float(), dim=1), features.labels
    num_images = len(labels)
    order_sum, precision = 0.0, dict.fromkeys(ranks, 0.0)
    judged = 0
    for start in range(0, num_images, _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, num_images))
        similarity = vectors[rows] @ vectors.T  # (n, N)
        similarity[torch.arange(len(rows)), rows] = -torch.inf  # itself comes last
        same = (labels[rows, None] == labels)[
            torch.arange(len(rows))[:, None], similarity.argsort(dim=1, descending=True)
        ][:, :-1]  # (n, N - 1), nearest first
        for k in ranks:
            precision[k] += same[:, :k].double().mean(1).sum().item()
        positives = same.sum(1)
        negatives = same.shape[1] - positives
        valid = (positives > 0) & (negatives > 0)
        # For each positive, the share of the negatives that come after it.
        after = negatives[:, None] - (~same).cumsum(1)
        wins = (after * same).sum(1).double()
        order_sum += (wins[valid] / (positives * negatives)[valid]).sum().item()
        judged += int(valid.sum())
    result = {'auroc': order_sum / judged if judged else float('nan')}
    return result | {f'precision_at_{k}': value / num_images for k, value in precision.items()}
