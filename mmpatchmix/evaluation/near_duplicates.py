"""All pairs of images that are nearly the same, by exact search in blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmpatchmix.evaluation.knn import find_neighbors

# Rows that search at once, and how many neighbours each looks for at first.
_ROWS, _FIRST_K = 8192, 16
# Neighbours of all searching rows together: 8 bytes each.
_MAX_FOUND = 2**24


def find_near_duplicates(
    features: Tensor, threshold: float, device: torch.device | str | None = None
) -> Tensor:
    """Find all pairs of rows whose cosine is at least a threshold.

    Args:
        features: ``(M, D)``; read in blocks, and may be mapped from a disk.
        threshold: In (-1, 1].
        device: Where to compute; by default where the features are.

    Returns:
        Tensor: ``(P, 3)`` float64 on the CPU: row, later row and cosine of each pair, the nearest
        first.

    Raises:
        ValueError: If the threshold is no cosine, or a feature is not finite.
    """
    if not -1 < threshold <= 1:
        raise ValueError(f'the threshold is a cosine, above -1 and at most 1; got {threshold}.')
    found = [torch.empty(0, 3, dtype=torch.float64)]
    for start in range(0, len(features), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(features)))
        found += _search(features, rows, start, threshold, _FIRST_K, device)
    pairs = torch.cat(found)
    # Stable, twice: by similarity, and among equal ones by row.
    pairs = pairs[(pairs[:, 0] * len(features) + pairs[:, 1]).argsort(stable=True)]
    return pairs[pairs[:, 2].argsort(descending=True, stable=True)]


def _search(
    features: Tensor, rows: Tensor, start: int, threshold: float, k: int, device
) -> Iterator[Tensor]:
    """Yield the pairs of some rows with later ones; of rows with more than k, all."""
    bank = features[start:]
    k = min(k, len(bank))
    for part in rows.split(max(1, _MAX_FOUND // k)):
        cosines, columns = (x.cpu() for x in find_neighbors(features[part], bank, k, device=device))
        is_pair = cosines >= threshold
        # Where the last of the k is near enough, there may be more: those rows search again.
        is_full = is_pair[:, -1] & (k < len(bank))
        is_pair &= (columns + start > part[:, None]) & ~is_full[:, None]
        row, column = is_pair.nonzero(as_tuple=True)
        values = part[row], columns[row, column] + start, cosines[row, column]
        yield torch.stack([value.double() for value in values], dim=1)
        if is_full.any():
            yield from _search(features, part[is_full], start, threshold, 4 * k, device)
