"""How features lie on the sphere: figures that need no labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.evaluation.knn import find_neighbors

_CHUNK = 2048


def alignment(first: Tensor, second: Tensor) -> float:
    """Compute the mean squared distance of the normalised features of two views.

    0 is the best, 2 that of unrelated features (Wang & Isola, https://arxiv.org/abs/2005.10242).

    Args:
        first: ``(N, D)``, one view of each image.
        second: ``(N, D)``, another view of the same images.
    """
    first, second = (F.normalize(part.double(), dim=1) for part in (first, second))
    return (first - second).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """Compute the log of the mean Gaussian potential of all pairs of normalised features.

    ``log mean exp(-2 |a - b|^2)`` over pairs of different rows; lower is more uniform, 0 is total
    collapse (Wang & Isola, https://arxiv.org/abs/2005.10242).

    Args:
        features: ``(N, D)``, at least two rows.
    """
    features = F.normalize(features.double(), dim=1)
    total = -float(len(features))  # the pairs of a row with itself, exp(0) each
    for rows in features.split(_CHUNK):
        total += (4 * (rows @ features.T - 1)).exp().sum().item()
    return torch.tensor(total / len(features) / (len(features) - 1)).log().item()


def rank_me(features: Tensor) -> float:
    """Compute RankMe, the exponential of the entropy of the normalised singular values.

    Between 1 and ``min(N, D)``; it falls when dimensions collapse
    (Garrido et al., https://arxiv.org/abs/2210.02885, equation 2).

    Args:
        features: ``(N, D)``, not normalised, not centred.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + 1e-7  # the paper's epsilon
    return (-shares * shares.log()).sum().exp().item()


def nearest_others(features: Tensor, num_neighbors: int) -> Tensor:
    """Find the nearest other rows of each row, by cosine.

    Args:
        features: ``(N, D)``, more rows than ``num_neighbors``.
        num_neighbors: k.

    Returns:
        Tensor: ``(N, k)`` int64, the nearest first.
    """
    indices = find_neighbors(features, features, num_neighbors + 1)[1]  # (N, k + 1)
    is_itself = indices == torch.arange(len(features), device=indices.device)[:, None]
    # Itself goes last; among more than k equal rows it may not be there.
    return indices.gather(1, is_itself.int().argsort(dim=1, stable=True))[:, :num_neighbors]


def share_kept(before: Tensor, now: Tensor) -> float:
    """Compute the share of each row's neighbours that it still has, the mean of all rows.

    1 is no change in whom an image is near to; unrelated features give ``k / (N - 1)``.

    Args:
        before: ``(N, k)``, see :func:`nearest_others`.
        now: ``(N, k)`` of the same images.
    """
    return (before[:, :, None] == now[:, None, :]).any(-1).double().mean().item()
