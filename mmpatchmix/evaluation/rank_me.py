"""How features lie in their space: figures that need no labels."""

import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmpatchmix.engine.exact_order import random_states_kept, seed_cpu
from mmpatchmix.evaluation.features import evaluation_mode
from mmpatchmix.evaluation.knn import find_neighbors
from mmpatchmix.models import PatchMix

_CHUNK = 2048

# Images whose views are encoded at once.
_IMAGES_AT_ONCE = 16


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
    return _effective_rank(torch.linalg.svdvals(features.double()))


def lidar(features: Tensor) -> float:
    """Compute LiDAR, the effective rank of what tells images apart beyond their views.

    With the mean ``m_i`` of the q views of image i and the mean ``m`` of all::

        B = 1/n sum_i (m_i - m)(m_i - m)^T
        W = 1/(nq) sum_i sum_j (e_ij - m_i)(e_ij - m_i)^T + 1e-4 I
        p = eigenvalues of W^-1/2 B W^-1/2, divided by their sum, + 1e-7
        LiDAR = exp(-sum p log p)

    Between 1 and ``min(D, n - 1)``; unlike RankMe it does not count directions in which views of
    one image differ as much as images do (Thilak et al., https://arxiv.org/abs/2312.04000,
    section 4). It grows with n until n is well above D: compare figures of one n and q.

    Args:
        features: ``(n, q, D)``, q views of each of n images, not normalised.

    Raises:
        ValueError: If there are fewer than two images or views.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(
            'LiDAR needs features (n, q, D) of at least two images and two views of each; got '
            f'{tuple(features.shape)}.'
        )
    features = features.double()
    means = features.mean(1)  # (n, D)
    centred = means - means.mean(0)
    between = centred.T @ centred / len(means)  # (D, D)
    spread = (features - means[:, None]).flatten(0, 1)  # (n * q, D)
    within = spread.T @ spread / len(spread)
    within += 1e-4 * torch.eye(len(within), dtype=within.dtype, device=within.device)
    # W = L L^T: the eigenvalues of L^-1 B L^-T are those of W^-1/2 B W^-1/2.
    factor = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return _effective_rank(torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp_min(0))


@torch.no_grad()
def encode_views(model: PatchMix, dataset: Dataset, num_images: int, num_pairs: int) -> Tensor:
    """Compute the features of training views, crops and colours included; the same each time.

    Args:
        model: A pre-trained model.
        dataset: Its training set; of more images than ``num_images`` every n-th is taken.
        num_images: n, at most.
        num_pairs: How often ``view_1`` and ``view_2`` of each image are drawn.

    Returns:
        Tensor: ``(n, q, D)`` on the CPU, ``q = 2 * num_pairs``, ``view_1`` and ``view_2`` in turn.
    """
    indices = range(0, len(dataset), -(-len(dataset) // num_images))
    features = []
    with random_states_kept(), evaluation_mode(model):
        seed_cpu(0)
        for start in range(0, len(indices), _IMAGES_AT_ONCE):
            part = indices[start : start + _IMAGES_AT_ONCE]
            samples = [dataset[index] for index in part for _ in range(num_pairs)]
            names = ('view_1', 'view_2')
            views = [{name: sample['inputs'][name] for name in names} for sample in samples]
            inputs = model.data_preprocessor(dict(inputs=default_collate(views)), False)['inputs']
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
    """Compute all figures that need no labels.

    Args:
        model: What the features are of.
        features: ``(N, D)`` of test views, at least two rows.
        dataset: Training images, for what needs several views of an image; None leaves it out.
        num_images: Of these, at most.
        num_pairs: Pairs of views of each.

    Returns:
        dict: ``geometry/rank_me`` and ``geometry/uniformity`` of the test views; with training
        images and a PatchMix model ``geometry/lidar`` and ``geometry/alignment`` of training views
        of ``geometry/lidar_images`` images.
    """
    metrics = {
        'geometry/rank_me': rank_me(features),
        'geometry/uniformity': uniformity(features),
    }
    if dataset is not None and isinstance(model, PatchMix):
        views = encode_views(model, dataset, num_images, num_pairs)
        metrics['geometry/lidar'] = lidar(views)
        metrics['geometry/lidar_images'] = float(len(views))
        metrics['geometry/alignment'] = alignment(views[:, 0], views[:, 1])
    return metrics


def _effective_rank(values: Tensor) -> float:
    shares = values / values.sum() + 1e-7  # the epsilon of both papers
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
