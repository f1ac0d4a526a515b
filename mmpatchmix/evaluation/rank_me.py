"""Geometry of features without labels: RankMe, LiDAR, alignment, uniformity, kept neighbours."""

import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate
from scipy.linalg import eigh
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmpatchmix.engine.exact_order import random_states_kept, seed_cpu
from mmpatchmix.evaluation.features import evaluation_mode
from mmpatchmix.evaluation.knn import find_neighbors
from mmpatchmix.models import PatchMix

# Rows compared with all others at once; images whose views are encoded at once.
_CHUNK, _IMAGES_AT_ONCE = 2048, 16


def alignment(first: Tensor, second: Tensor) -> float:
    """Compute the mean squared distance of the normalised features ``(N, D)`` of two views.

    0 is the best, 2 that of unrelated features (Wang & Isola, https://arxiv.org/abs/2005.10242).
    """
    first, second = (F.normalize(part.double(), dim=1) for part in (first, second))
    return (first - second).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """Compute the log of the mean Gaussian potential of all pairs of normalised features.

    ``log mean exp(-2 |a - b|^2)`` over pairs of different rows of ``(N, D)``; lower is more
    uniform, 0 is total collapse; one row has none (Wang & Isola, https://arxiv.org/abs/2005.10242).
    """
    features = F.normalize(features.double(), dim=1)
    total = -float(len(features))  # the pairs of a row with itself, exp(0) each
    for rows in features.split(_CHUNK):
        total += (4 * (rows @ features.T - 1)).exp().sum().item()
    return torch.tensor(total / len(features)).div(len(features) - 1).log().item()


def rank_me(features: Tensor) -> float:
    """Compute RankMe, the exponential of the entropy of the normalised singular values.

    Between 1 and ``min(N, D)`` for features ``(N, D)``, neither normalised nor centred; it falls
    when dimensions collapse (Garrido et al., https://arxiv.org/abs/2210.02885, equation 2).
    """
    return _effective_rank(torch.linalg.svdvals(features.double()))


def lidar(features: Tensor) -> float:
    """Compute LiDAR, the effective rank of what tells images apart beyond their views.

    With the mean ``m_i`` of the q views of image i and the mean ``m`` of all::

        B = 1/n sum_i (m_i - m)(m_i - m)^T
        W = 1/(nq) sum_i sum_j (e_ij - m_i)(e_ij - m_i)^T + 1e-4 I
        p = eigenvalues of W^-1/2 B W^-1/2, divided by their sum, + 1e-7
        LiDAR = exp(-sum p log p)

    Unlike RankMe it does not count directions in which views of one image differ as much as images
    do (Thilak et al., https://arxiv.org/abs/2312.04000, section 4). Between 1 and
    ``min(D, n - 1)``; it grows with n until n is well above D. ``features`` ``(n, q, D)`` are not
    normalised; ``ValueError`` if there are fewer than two images or views.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        shape = tuple(features.shape)
        raise ValueError(f'LiDAR needs (n, q, D), at least two images and two views; got {shape}.')
    features = features.double()
    means = features.mean(1)  # (n, D)
    between = torch.cov(means.T, correction=0)  # (D, D)
    spread = (features - means[:, None]).flatten(0, 1)  # (n * q, D)
    within = spread.T @ spread / len(spread)
    within.diagonal().add_(1e-4)
    # Those of the pair (B, W) are those of W^-1/2 B W^-1/2.
    values = eigh(between.cpu().numpy(), within.cpu().numpy(), eigvals_only=True)
    return _effective_rank(torch.from_numpy(values).clamp_min(0))


def nearest_others(features: Tensor, num_neighbors: int) -> Tensor:
    """Return ``(N, k)`` int64, the nearest other rows of each row of ``(N, D)`` by cosine."""
    indices = find_neighbors(features, features, num_neighbors + 1)[1]  # (N, k + 1)
    is_itself = indices == torch.arange(len(features), device=indices.device)[:, None]
    # The row itself goes last; among more than k equal rows it may be missing.
    return indices.gather(1, is_itself.int().argsort(dim=1, stable=True))[:, :num_neighbors]


def share_kept(before: Tensor, now: Tensor) -> float:
    """Compute the share of each row's neighbours ``(N, k)`` that it still has, the mean of all.

    1 means the same neighbours; unrelated features give ``k / (N - 1)``.
    """
    return (before[:, :, None] == now[:, None, :]).any(-1).double().mean().item()


@torch.no_grad()
def encode_views(model: PatchMix, dataset: Dataset, num_images: int, num_pairs: int) -> Tensor:
    """Compute features of augmented training views, the same in every call.

    ``(n, q, D)`` on the CPU, ``q = 2 * num_pairs``, ``view_1`` and ``view_2`` in turn; of more
    images than ``num_images`` every n-th is taken.
    """
    indices, names = range(0, len(dataset), -(-len(dataset) // num_images)), ('view_1', 'view_2')
    features = []
    with random_states_kept(), evaluation_mode(model):
        seed_cpu(0)
        for start in range(0, len(indices), _IMAGES_AT_ONCE):
            part = indices[start : start + _IMAGES_AT_ONCE]
            samples = [dataset[index]['inputs'] for index in part for _ in range(num_pairs)]
            views = default_collate([{name: sample[name] for name in names} for sample in samples])
            inputs = model.data_preprocessor(dict(inputs=views), False)['inputs']
            encoded = [model.extract_feat(inputs[name]).float().cpu() for name in names]
            both = torch.stack(encoded, dim=1)  # (images * pairs, 2, D)
            features.append(both.unflatten(0, (-1, num_pairs)).flatten(1, 2))
    return torch.cat(features)


def measure_geometry(
    model: nn.Module,
    features: Tensor,
    dataset: Dataset | None = None,
    num_images: int = 1000,
    num_pairs: int = 5,
) -> dict[str, float]:
    """Compute all figures that need no labels, of features ``(N, D)`` of test views.

    These are ``geometry/rank_me`` and, of two images or more, ``geometry/uniformity``; with a data
    set of training images (``num_pairs`` pairs of views of up to ``num_images``) and the PatchMix
    model of the features also ``geometry/lidar``, ``geometry/alignment`` and
    ``geometry/lidar_images``.
    """
    metrics = {'rank_me': rank_me(features)}
    if len(features) > 1:
        metrics['uniformity'] = uniformity(features)
    if dataset is not None and isinstance(model, PatchMix):
        views = encode_views(model, dataset, num_images, num_pairs)
        metrics |= {'lidar': lidar(views), 'lidar_images': float(len(views))}
        metrics['alignment'] = alignment(views[:, 0], views[:, 1])
    return {f'geometry/{name}': value for name, value in metrics.items()}


def _effective_rank(values: Tensor) -> float:
    shares = values / values.sum() + 1e-7  # the epsilon of both papers
    return (-shares * shares.log()).sum().exp().item()
