"""Weighted k-nearest-neighbour classification: exact, in blocks, the same every time.

The protocol is that of Wu et al., *Unsupervised Feature Learning via Non-Parametric Instance
Discrimination* (https://arxiv.org/abs/1805.01978): features are L2-normalised, similarity is the
cosine, and a neighbour votes for its class with ``exp(similarity / temperature)``.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Similarities are computed and searched in blocks of this many queries and bank rows; on a GPU,
# which is asked for a few counts in each, in fewer and larger ones: 1.1 GB.
CHUNKS, CHUNKS_OF_GPUS = (1024, 16384), (4096, 65536)

# A neighbour is one int64, its rank: the similarity times 2**30 in the upper half, the inverted
# bank index in the lower one. So equal similarities are in the order of the bank, which topk alone
# does not promise. 2**30 keeps every bit of a float32 cosine above 2**-6.
_SCALE, _INDEX_BITS, _MAX_INDEX = 2**30, 32, 2**32 - 1

_NO_RANK = -(2**63)

# Votes are added as integers, so that the order of adding does not matter; 2**20 of them fit.
_VOTE_SCALE = 2**42


@torch.no_grad()
def find_neighbors(
    queries: Tensor,
    bank: Tensor,
    num_neighbors: int,
    *,
    query_chunk: int | None = None,
    bank_chunk: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the nearest rows of a bank by cosine similarity, exactly.

    Beyond the features this takes 8 bytes times Q times K, and one block of similarities.

    Args:
        queries: ``(Q, D)``.
        bank: ``(M, D)``. It is read once, block by block, and may stay on the host.
        num_neighbors: K; at most M are found.
        query_chunk: Queries per block; by default 1024, and 4096 on GPUs.
        bank_chunk: Bank rows per block; by default 16,384, and 65,536 on GPUs.
        device: Where to compute; by default where ``queries`` are.

    Returns:
        tuple: Similarities ``(Q, K)`` in falling order and bank indices ``(Q, K)``, on
        ``device``. Among equal similarities the lower bank index comes first.

    Raises:
        ValueError: If shapes do not fit, the bank is empty, or a feature is not finite.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            'queries and bank must be (Q, D) and (M, D) with the same D; got '
            f'{tuple(queries.shape)} and {tuple(bank.shape)}.'
        )
    if len(bank) == 0 or num_neighbors < 1:
        raise ValueError(f'The bank is empty, or num_neighbors={num_neighbors} is below 1.')
    queries = _normalize(queries.to(device or queries.device), 'queries')  # (Q, D)
    usual = choose_chunks(queries)
    query_chunk, bank_chunk = query_chunk or usual[0], bank_chunk or usual[1]
    k = min(num_neighbors, len(bank))
    best = torch.full((len(queries), k), _NO_RANK, device=queries.device)  # (Q, K)
    # The same memory for all blocks: fresh memory for each costs a fifth of the product.
    rows = queries.new_empty(min(len(bank), bank_chunk), queries.shape[1])
    buffer = queries.new_empty(min(len(queries), query_chunk) * min(len(bank), bank_chunk))
    start = 0
    while start < len(bank):
        # Blocks grow: what is found in small ones sorts out most rows of the large ones.
        stop = start + min(bank_chunk, max(start, k, 1024))
        block = bank[start:stop].to(queries.device)  # (B, D)
        block = _normalize(block, 'bank', start, out=rows[: len(block)])
        for i in range(0, len(queries), query_chunk):
            part = queries[i : i + query_chunk]  # (q, D)
            similarity = buffer[: len(part) * len(block)].view(len(part), len(block))
            torch.mm(part, block.T, out=similarity)
            _update(best[i : i + query_chunk], similarity, start)
        start = stop
    return ((best >> _INDEX_BITS).double() / _SCALE).float(), _MAX_INDEX - (best & _MAX_INDEX)


def choose_chunks(queries: Tensor) -> tuple[int, int]:
    """Return how many queries and bank rows make a block where the queries are."""
    return CHUNKS if queries.device.type == 'cpu' else CHUNKS_OF_GPUS


def _normalize(features: Tensor, name: str, start: int = 0, out: Tensor | None = None) -> Tensor:
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float32)
    if not norms.isfinite().all():  # finite rows may have an infinite norm: look closer
        broken = (~features.isfinite().all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ValueError(
                f'Row {start + int(broken[0])} of the {name} features is not finite (NaN or '
                'infinity). The network has diverged, or the checkpoint is broken.'
            )
    return torch.div(features.float(), norms.clamp_min(1e-12), out=out)


def _update(best: Tensor, similarity: Tensor, start: int) -> None:
    """Put the rows of a block ``(q, B)`` that are near enough among the best ranks ``(q, K)``."""
    # A later row that is as near as the last of the best has a larger index and loses: hence >.
    threshold = (best[:, -1:] >> _INDEX_BITS).float() / _SCALE  # (q, 1)
    # Few rows are near enough. To look at the nearest of each 64 first is a fifth quicker.
    size = math.gcd(similarity.shape[1], 64)
    groups = similarity.unflatten(1, (-1, size))  # (q, B / size, size)
    query, group = (groups.amax(dim=2) > threshold).nonzero(as_tuple=True)
    values = groups[query, group]  # (number of groups, size)
    found, column = (values > threshold[query]).nonzero(as_tuple=True)
    query, index = query[found], start + group[found] * size + column
    # `query` rises: the n-th candidate of a query goes to its row's column n.
    count = query.bincount(minlength=len(best))
    place = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
    ranks = best.new_full((len(best), int(count.max())), _NO_RANK)
    similarity = (values[found, column] * _SCALE).round().long()
    ranks[query, place] = (similarity << _INDEX_BITS) + (_MAX_INDEX - index)
    best.copy_(torch.cat([best, ranks], dim=1).topk(best.shape[1], dim=1).values)


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_neighbors: Sequence[int] = (10, 20, 100, 200),
    temperature: float | None = 0.07,
    *,
    top: int = 5,
    **search,
) -> dict[int, Tensor]:
    """Classify queries by their neighbours in a bank, for several k from one search.

    Args:
        queries: ``(Q, D)``.
        bank: ``(M, D)``.
        bank_labels: ``(M,)`` classes from 0.
        num_neighbors: The k's. One larger than the bank means all of it, with a warning.
        temperature: Above 0; None gives each neighbour one vote.
        top: Number of classes to predict per query.
        **search: ``query_chunk``, ``bank_chunk`` and ``device`` of :func:`find_neighbors`.

    Returns:
        dict: For each k the classes ``(Q, top)`` on the CPU, most votes first. Among equal votes
        the lower class comes first. Where fewer classes have a neighbour, -1 fills up.

    Raises:
        ValueError: If a setting, a shape or a value makes no sense.
    """
    check_knn_settings(num_neighbors, temperature)
    if bank_labels.shape != (len(bank),) or (bank_labels < 0).any():
        raise ValueError(f'bank_labels must be ({len(bank)},) classes from 0, one per bank row.')
    similarities, indices = find_neighbors(queries, bank, max(num_neighbors), **search)
    if max(num_neighbors) > len(bank):
        warnings.warn(f'k = {max(num_neighbors)} exceeds the bank of {len(bank)}: all of it votes.')
    bank_labels = bank_labels.long().to(indices.device)
    num_classes = max(top, int(bank_labels.max()) + 1)
    result = {k: torch.empty(len(queries), top, dtype=torch.int64) for k in num_neighbors}
    for k, classes in result.items():
        for i in range(0, len(queries), CHUNKS[0]):  # the votes of all would fill the memory
            part = slice(i, i + CHUNKS[0])
            near, voters = similarities[part, :k], indices[part, :k]
            classes[part] = vote(near, bank_labels[voters], num_classes, temperature)[:, :top]
    return result


def vote(similarities: Tensor, labels: Tensor, num_classes: int, temperature: float | None):
    """Order the classes ``(q, C)`` by the votes of neighbours ``(q, K)``; -1 where nobody votes."""
    weights = torch.ones_like(similarities, dtype=torch.float64)
    if temperature is not None:  # a factor common to all votes of a query changes nothing
        weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
    weights = (weights * _VOTE_SCALE).round().long().clamp(min=1)
    votes = labels.new_zeros(len(labels), num_classes).scatter_add(1, labels, weights)
    votes, classes = votes.sort(dim=1, descending=True, stable=True)
    return classes.masked_fill(votes == 0, -1)


def check_knn_settings(num_neighbors: Sequence[int], temperature: float | None) -> None:
    """Raise ``ValueError`` unless the k's are whole numbers from 1 and the temperature above 0."""
    if temperature is not None and temperature <= 0:
        raise ValueError(f'temperature must be positive, or None for one vote each: {temperature}.')
    asked = num_neighbors if isinstance(num_neighbors, Sequence) else ()
    if not asked or any(type(k) is not int or not 0 < k <= 2**20 for k in asked):
        raise ValueError(
            'num_neighbors must be integers from 1 to 2**20, for example (10, 20, 100, 200); got '
            f'{num_neighbors}.'
        )


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
