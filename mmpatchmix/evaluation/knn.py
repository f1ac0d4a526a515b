"""Weighted k-nearest-neighbour classification: exact, chunked, deterministic.

The protocol is the one of Wu et al., *Unsupervised Feature Learning via
Non-Parametric Instance Discrimination* (arXiv 1805.01978): features are
L2-normalised, similarity is the cosine and a neighbour votes for its class with
``exp(similarity / temperature)``.

Nothing here depends on the size of a process group or on where the features
came from; the validation loop and the offline tool both end in
:func:`knn_predict`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A neighbour is ranked by one int64: the similarity as fixed point in the high
# half, the negated bank index in the low half. That makes the order total
# (equal similarity: the lower index wins), which torch.topk alone does not
# promise. 2**30 keeps every bit of a float32 cosine above 2**-6.
_SIMILARITY_SCALE = 2**30
_INDEX_BITS = 32
_MAX_INDEX = 2**_INDEX_BITS - 1
# Votes are added as integers, so that their order cannot matter. With weights
# of at most 1 and 2**20 neighbours a sum stays below 2**62.
_VOTE_SCALE = 2**42
_MAX_NEIGHBORS = 2**20
# Below any real rank.
_NO_RANK = -(2**63)
# Columns of a similarity block whose maximum is looked at first.
_GROUP = 64
# Sizes of the similarity block: 1024 x 16384 takes 64 MiB as float32, 128 MiB
# as ranks, and as much again while the top is taken.
QUERY_CHUNK = 1024
BANK_CHUNK = 16384


@torch.no_grad()
def find_neighbors(
    queries: Tensor,
    bank: Tensor,
    num_neighbors: int,
    *,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of a bank by cosine similarity, exactly.

    The bank is visited once, chunk by chunk, so it may stay in host memory
    while the arithmetic runs on ``device``. Beyond the features this needs the
    normalised queries, ``Q * K`` ranks of 8 bytes and one block of
    ``query_chunk * bank_chunk``: about 0.5 GB for 50,000 queries against
    1.28 M rows of 384 values and K = 200.

    Args:
        queries (Tensor): (Q, D), any floating dtype.
        bank (Tensor): (M, D), any floating dtype.
        num_neighbors (int): K; clamped to M.
        query_chunk (int): Queries per block.
        bank_chunk (int): Bank rows per block.
        device (torch.device | str, optional): Where to compute; by default
            where ``queries`` are.

    Returns:
        tuple[Tensor, Tensor]: similarities (Q, K) float32 in falling order and
        bank indices (Q, K) int64, on ``device``. Among equal similarities the
        lower bank index comes first.

    Raises:
        ValueError: If shapes do not fit, the bank is empty, or a feature is
            not finite.
    """
    _check_features(queries, bank, num_neighbors)
    device = torch.device(device) if device is not None else queries.device
    num_neighbors = min(num_neighbors, len(bank))
    queries = _normalize(queries, device, 'queries')  # (Q, D)
    best = queries.new_full((len(queries), num_neighbors), _NO_RANK, dtype=torch.int64)
    # The same buffers for all blocks: fresh pages cost a fifth of the product itself. And no
    # results that outlive a block: between large blocks they leave holes that nothing fits.
    rows = queries.new_empty(min(len(bank), bank_chunk), bank.shape[1])
    buffer = queries.new_empty(min(len(queries), query_chunk) * min(len(bank), bank_chunk))
    for start in range(0, len(bank), bank_chunk):
        block = bank[start : start + bank_chunk]
        block = _normalize(block, device, 'bank', start, out=rows[: len(block)])  # (B, D)
        for i in range(0, len(queries), query_chunk):
            part = queries[i : i + query_chunk]  # (q, D)
            similarity = buffer[: len(part) * len(block)].view(len(part), len(block))
            torch.mm(part, block.T, out=similarity)
            _merge_best(best[i : i + query_chunk], similarity, start)
    similarities = (best >> _INDEX_BITS).to(torch.float64) / _SIMILARITY_SCALE
    return similarities.float(), _MAX_INDEX - (best & _MAX_INDEX)


def _merge_best(best: Tensor, similarity: Tensor, start: int) -> None:
    """Update ranks of the best so far, (q, K) int64, by a block's (q, B) from row ``start`` on."""
    k = best.shape[1]
    ranks = _promising_ranks(best, similarity, start)
    if ranks is None:
        indices = torch.arange(start, start + similarity.shape[1], device=best.device)
        ranks = _rank(similarity, indices)
        ranks = ranks.topk(min(k, ranks.shape[1]), dim=1).values
    best.copy_(torch.cat([best, ranks], dim=1).topk(k, dim=1).values)


def _promising_ranks(best: Tensor, similarity: Tensor, start: int) -> Tensor | None:
    """Ranks of the rows that beat a query's k-th best, (q, most of a query), the rest lowest.

    Few rows of a block do, so one pass for the maxima of groups of columns
    finds them: taking the top of the whole block would cost as much as the
    product. None where so many groups have one that this does not pay.
    """
    # A later row with the same similarity has the larger index and loses: hence >.
    threshold = (best[:, -1:] >> _INDEX_BITS).float() / _SIMILARITY_SCALE  # (q, 1), exact
    grouped = similarity.unflatten(1, (-1, math.gcd(similarity.shape[1], _GROUP)))  # (q, G, g)
    query, group = (grouped.amax(2) > threshold).nonzero(as_tuple=True)
    values = len(query) * grouped.shape[2]
    if values > similarity.numel() // 2:
        return None
    candidates = grouped[query, group]  # (number of groups, g)
    which, column = (candidates > threshold[query]).nonzero(as_tuple=True)
    indices = start + group[which] * grouped.shape[2] + column
    query = query[which]  # falls into runs, one for each query
    counts = query.bincount(minlength=len(best))
    position = torch.arange(len(query), device=best.device) - (counts.cumsum(0) - counts)[query]
    ranks = best.new_full((len(best), int(counts.max())), _NO_RANK)
    ranks[query, position] = _rank(candidates[which, column], indices)
    return ranks


def _rank(similarity: Tensor, indices: Tensor) -> Tensor:
    """One int64 that orders by similarity, then by index; overwrites ``similarity``."""
    ranks = similarity.mul_(_SIMILARITY_SCALE).round_().to(torch.int64)
    ranks <<= _INDEX_BITS
    return ranks.add_(_MAX_INDEX - indices)


def _normalize(
    features: Tensor,
    device: torch.device,
    name: str,
    start: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    features = features.to(device=device, dtype=torch.float32)
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    if not norms.isfinite().all():  # one value per row, so the look at all of them is rare
        broken = ~features.isfinite().all(dim=1)
        if broken.any():
            raise ValueError(
                f'Row {start + int(broken.nonzero()[0])} of the {name} features is not finite '
                '(NaN or infinity), so it has no neighbours. The network has diverged or the '
                'checkpoint is broken.'
            )
    return torch.div(features, norms.clamp_min(1e-12), out=out)


def knn_votes(
    similarities: Tensor,
    labels: Tensor,
    num_classes: int,
    num_neighbors: Sequence[int],
    temperature: float | None = 0.07,
) -> dict[int, Tensor]:
    """Add up the votes of the neighbours for several k at once.

    Args:
        similarities (Tensor): (Q, K) float, in falling order.
        labels (Tensor): (Q, K) int64, the neighbours' classes.
        num_classes (int): C.
        num_neighbors (Sequence[int]): The k's, each at most K.
        temperature (float, optional): Vote weight is
            ``exp(similarity / temperature)``; None gives every neighbour one vote.

    Returns:
        dict[int, Tensor]: For each k the votes (Q, C) int64, up to a factor per
        query. A class has 0 if and only if none of the k neighbours is of it.
    """
    if temperature is None:
        weights = torch.full_like(labels, _VOTE_SCALE)  # (Q, K)
    else:
        # The factor exp(max / temperature) is common to a query's votes.
        logits = (similarities.double() - similarities[:, :1].double()) / temperature
        weights = (logits.exp() * _VOTE_SCALE).round().to(torch.int64).clamp_(min=1)
    votes = labels.new_zeros(len(labels), num_classes)  # (Q, C)
    result, done = {}, 0
    for k in sorted(set(num_neighbors)):
        votes.scatter_add_(1, labels[:, done:k], weights[:, done:k])
        result[k], done = votes.clone(), k
    return result


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_neighbors: Sequence[int] = (10, 20, 100, 200),
    temperature: float | None = 0.07,
    *,
    top: int = 5,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
    device: torch.device | str | None = None,
) -> dict[int, Tensor]:
    """Classify queries by their neighbours in a bank, for several k from one search.

    Args:
        queries (Tensor): (Q, D) float features.
        bank (Tensor): (M, D) float features.
        bank_labels (Tensor): (M,) int64 classes, 0 or more.
        num_neighbors (Sequence[int]): The k's. One larger than the bank means
            the whole bank; a warning says so.
        temperature (float, optional): See :func:`knn_votes`.
        top (int): Number of classes to predict per query.
        query_chunk (int): Queries per block, see :func:`find_neighbors`.
        bank_chunk (int): Bank rows per block.
        device (torch.device | str, optional): Where to compute.

    Returns:
        dict[int, Tensor]: For each k (as asked) the classes (Q, top) int64 on
        the CPU, most votes first; among equal votes the lower class index
        comes first, as in scikit-learn. Where fewer than ``top`` classes have
        a neighbour, -1 fills up.

    Raises:
        ValueError: If shapes or values do not fit.
    """
    asked = check_knn_settings(num_neighbors, temperature)
    _check_features(queries, bank, max(asked))
    if bank_labels.shape != (len(bank),) or int(bank_labels.min()) < 0:
        raise ValueError(
            f'bank_labels must be ({len(bank)},) classes of 0 or more, one per row of the bank; '
            f'got shape {tuple(bank_labels.shape)}, smallest {int(bank_labels.min())}.'
        )
    if max(asked) > len(bank):
        large = [k for k in asked if k > len(bank)]
        warnings.warn(f'k = {large} exceeds the bank of {len(bank)}: all of it votes there.')

    similarities, indices = find_neighbors(
        queries, bank, max(asked), query_chunk=query_chunk, bank_chunk=bank_chunk, device=device
    )
    bank_labels = bank_labels.to(indices.device, torch.int64)
    num_classes = int(bank_labels.max()) + 1
    used = {k: min(k, len(bank)) for k in asked}
    result = {k: torch.empty(len(queries), top, dtype=torch.int64) for k in asked}
    for i in range(0, len(queries), query_chunk):
        rows = slice(i, i + query_chunk)
        votes = knn_votes(
            similarities[rows], bank_labels[indices[rows]], num_classes, used.values(), temperature
        )
        for k in asked:
            result[k][rows] = _top_classes(votes[used[k]], top)
    return result


def _top_classes(votes: Tensor, top: int) -> Tensor:
    """Classes by falling votes, stable, (Q, top) int64 on the CPU; -1 where nobody voted."""
    votes, classes = votes.sort(dim=1, descending=True, stable=True)
    classes = classes.masked_fill(votes == 0, -1)[:, :top]
    return F.pad(classes, (0, top - classes.shape[1]), value=-1).cpu()


def check_knn_settings(num_neighbors: Sequence[int], temperature: float | None) -> list[int]:
    """Refuse impossible settings.

    Args:
        num_neighbors (Sequence[int]): The k's.
        temperature (float, optional): The temperature of the votes.

    Returns:
        list[int]: The k's in the order asked, each once.

    Raises:
        ValueError: If there is no k, one is out of range, or the temperature
            is not positive.
    """
    if temperature is not None and temperature <= 0:
        raise ValueError(
            f'temperature must be positive, or None for equal votes; got {temperature}.'
        )
    asked = list(dict.fromkeys(num_neighbors))
    if not asked or any(not isinstance(k, int) or not 1 <= k <= _MAX_NEIGHBORS for k in asked):
        raise ValueError(
            f'num_neighbors must be integers from 1 to {_MAX_NEIGHBORS}, for example '
            f'(10, 20, 100, 200); got {num_neighbors}.'
        )
    return asked


def _check_features(queries: Tensor, bank: Tensor, num_neighbors: int) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            'queries and bank must be (Q, D) and (M, D) with the same D; got '
            f'{tuple(queries.shape)} and {tuple(bank.shape)}.'
        )
    if len(bank) == 0:
        raise ValueError('The bank is empty: there is nobody to vote.')
    if num_neighbors < 1:
        raise ValueError(f'num_neighbors must be at least 1; got {num_neighbors}.')
