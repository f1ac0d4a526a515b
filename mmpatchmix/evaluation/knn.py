"""Nearest neighbours by cosine: kNN classification and near-duplicates, exact, block by block.

The protocol of kNN is that of Wu et al., *Unsupervised Feature Learning via Non-Parametric Instance
Discrimination* (https://arxiv.org/abs/1805.01978): features are L2-normalised, similarity is the
cosine, and a neighbour votes for its class with ``exp(similarity / temperature)``.
"""

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Queries and bank rows whose similarities are in memory at once: 64 MB, and 1.1 GB on a GPU.
CHUNKS, CHUNKS_OF_GPUS = (512, 32768), (4096, 65536)
# Columns per group in the first stage of the search for the largest of a block.
_GROUP_SIZE = 16
# Votes are added as integers, so that their sum does not depend on the order; 2**20 of them fit.
_VOTE_SCALE = 2**42


@torch.no_grad()
def find_neighbors(
    queries: Tensor, bank: Tensor, num_neighbors: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Find the K nearest rows (at most M) of a bank by cosine similarity, exactly.

    ``queries`` are ``(Q, D)``. The bank ``(M, D)`` is read once, block by block, and may stay on
    the host. ``device`` is by default that of the queries.

    Returns:
        tuple: Similarities ``(Q, K)`` float32 in falling order and bank indices ``(Q, K)`` int64,
        on ``device``. The order of equal similarities is that of :func:`torch.topk`.

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
    k = min(num_neighbors, len(bank))
    queries = queries.to(device or queries.device)
    values = queries.new_full((len(queries), k), -torch.inf, dtype=torch.float32)  # (Q, K)
    indices = torch.zeros_like(values, dtype=torch.int64)  # (Q, K)
    for first, start, similarity in _compare_blocks(queries, bank):
        rows = slice(first, first + len(similarity))
        found, columns = _find_largest(similarity, k, values[rows, -1:])
        values[rows], order = torch.cat([values[rows], found], dim=1).topk(k)
        indices[rows] = torch.cat([indices[rows], columns + start], dim=1).gather(1, order)
    return values, indices


def find_near_duplicates(
    features: Tensor, threshold: float, device: torch.device | str | None = None
) -> Tensor:
    """Find all pairs of rows of ``(M, D)`` whose cosine is at least a threshold in (-1, 1].

    A cosine may be 1e-6 less, since rounding lowers that of equal rows. Returns ``(P, 3)`` float64
    on the CPU: row, later row and cosine of each pair, the nearest first, equal ones by row. The
    features are read in blocks, and may be mapped from a disk. ``ValueError`` if the threshold is
    out of range, or a feature is not finite.
    """
    if not -1 < threshold <= 1:
        raise ValueError(f'the threshold is a cosine, above -1 and at most 1; got {threshold}.')
    found = [torch.empty(0, 3, dtype=torch.float64)]
    for start in range(0, len(features), CHUNKS[1]):
        queries, later = features[start : start + CHUNKS[1]], features[start:]
        for first, other, cosines in _compare_blocks(queries.to(device), later):
            row, column = (cosines >= threshold - 1e-6).nonzero(as_tuple=True)
            pairs = row + first + start, column + other + start, cosines[row, column]
            pairs = torch.stack([part.double() for part in pairs], dim=1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]].cpu())
    pairs = torch.cat(found)
    pairs = pairs[(pairs[:, 0] * len(features) + pairs[:, 1]).argsort()]
    return pairs[pairs[:, 2].argsort(descending=True, stable=True)]


def knn_predict(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_neighbors: Sequence[int] = (10, 20, 100, 200),
    temperature: float | None = 0.07,
    device: torch.device | str | None = None,
) -> dict[int, Tensor]:
    """Classify queries by their neighbours in a bank, for several k from one search.

    Args:
        queries: ``(Q, D)``.
        bank: ``(M, D)``.
        bank_labels: ``(M,)`` classes from 0.
        num_neighbors: The k's. One larger than the bank means all of it, with a warning.
        temperature: Above 0; None gives each neighbour one vote.
        device: Where to search; by default where ``queries`` are.

    Returns:
        dict: For each k the five classes ``(Q, 5)`` on the CPU, most votes first. Among equal votes
        the lower class comes first. Where fewer classes have a neighbour, -1 fills up.

    Raises:
        ValueError: If a setting, a shape or a value is invalid.
    """
    check_knn_settings(num_neighbors, temperature)
    if bank_labels.shape != (len(bank),) or (bank_labels < 0).any():
        raise ValueError(f'bank_labels must be ({len(bank)},) classes from 0, one per bank row.')
    similarities, indices = find_neighbors(queries, bank, max(num_neighbors), device)
    if max(num_neighbors) > len(bank):
        warnings.warn(f'k = {max(num_neighbors)} exceeds the bank of {len(bank)}: all of it votes.')
    bank_labels = bank_labels.long().to(indices.device)
    num_classes = max(5, int(bank_labels.max()) + 1)
    result = {k: torch.empty(len(queries), 5, dtype=torch.int64) for k in num_neighbors}
    for k, classes in result.items():
        for rows in torch.arange(len(queries)).split(1024):  # all (Q, C) votes need too much memory
            labels = bank_labels[indices[rows, :k]]
            votes = vote(similarities[rows, :k], labels, num_classes, temperature)
            classes[rows] = votes[:, :5].cpu()
    return result


def vote(similarities: Tensor, labels: Tensor, num_classes: int, temperature: float | None):
    """Order the classes ``(q, C)`` by the votes of neighbours ``(q, K)``; -1 without a vote."""
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
    ks = num_neighbors if isinstance(num_neighbors, Sequence) else ()
    if not ks or any(type(k) is not int or not 0 < k <= 2**20 for k in ks):
        raise ValueError(
            'num_neighbors must be integers from 1 to 2**20, for example (10, 20, 100, 200); got '
            f'{num_neighbors}.'
        )


def _compare_blocks(queries: Tensor, bank: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield first query, first bank row and cosines ``(q, B)`` of each block, in reused memory."""
    queries = _normalize(queries, 'queries')  # (Q, D)
    num_queries, num_rows = CHUNKS if queries.device.type == 'cpu' else CHUNKS_OF_GPUS
    num_rows = min(num_rows, len(bank))
    # The same memory for all blocks: fresh memory for each costs a fifth of the product.
    rows = queries.new_empty(num_rows, queries.shape[1])
    buffer = queries.new_empty(min(len(queries), num_queries) * num_rows)
    for start in range(0, len(bank), num_rows):
        block = bank[start : start + num_rows].to(queries.device)
        block = _normalize(block, 'bank', start, out=rows[: len(block)])  # (B, D)
        for first in range(0, len(queries), num_queries):
            part = queries[first : first + num_queries]  # (q, D)
            similarity = buffer[: len(part) * len(block)].view(len(part), len(block))
            yield first, start, torch.mm(part, block.T, out=similarity)


def _normalize(features: Tensor, name: str, start: int = 0, out: Tensor | None = None) -> Tensor:
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float32)
    if not norms.isfinite().all():  # finite rows may have an infinite norm
        broken = (~features.isfinite().all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ValueError(
                f'Row {start + int(broken[0])} of the {name} features is not finite (NaN or '
                'infinity). The network has diverged, or the checkpoint is broken.'
            )
    return torch.div(features.float(), norms.clamp_min(1e-12), out=out)


def _find_largest(similarity: Tensor, k: int, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and columns of each row's k largest, searched in the groups that hold them."""
    num_groups = similarity.shape[1] // _GROUP_SIZE
    if similarity.shape[1] % _GROUP_SIZE or k >= num_groups:
        return similarity.topk(min(k, similarity.shape[1]))
    groups = similarity.view(len(similarity), _GROUP_SIZE, num_groups)
    maxima = groups.amax(dim=1)  # (q, G); group g holds the columns g, g + G, g + 2 G, ...
    num_chosen = min(k, int((maxima > lowest).sum(dim=1).max()))
    chosen = maxima.topk(num_chosen, sorted=False).indices[:, None]
    columns = chosen + num_groups * torch.arange(_GROUP_SIZE, device=chosen.device)[:, None]
    columns = columns.flatten(1)  # (q, columns of the chosen groups)
    values, order = similarity.gather(1, columns).topk(min(k, columns.shape[1]))
    return values, columns.gather(1, order)
