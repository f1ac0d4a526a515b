"""Predictor, gathering of keys and the soft contrastive cross-entropy."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from mmengine import dist
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import functional as F

from mmpatchmix.models.mixing import Target, copy_to_device
from mmpatchmix.registry import MODELS


class Pair(NamedTuple):
    """Queries, the keys they are contrasted with, and which of these belong to them."""

    queries: Tensor  # (V * n, D), from predict: V views of n images, one after the other
    keys: Tensor  # (W * N, D), one view of gather
    target: Target | None = None  # None is the identity, each image itself


class Contrast(NamedTuple):
    """Means over the queries of each of P pairs; float32."""

    loss: Tensor  # (P,), the cross-entropy, with gradient
    accuracy: Tensor  # (P,), share of queries whose nearest key is one with weight, in [0, 1]
    kl: Tensor  # (P,), KL(target || prediction) = cross-entropy - entropy of the target, nats


@MODELS.register_module()
class ContrastiveHead(BaseModule):
    """Contrast predicted queries with the keys of all ranks.

    ``ce(q, k, Y) = -mean_n sum_m Y_nm * log softmax_m(q_n . k_m / tau)`` with
    normalised ``q`` and ``k``, in float32. The target ``Y`` is never built:
    its rows are ``(offsets, weights)``, see :mod:`mmpatchmix.models.mixing`.

    Source: https://arxiv.org/abs/2306.12243.

    Args:
        predictor: Config of the predictor (a neck of mmpretrain).
        temperature: ``tau``, above 0.
        label_smoothing: Share of the target spread evenly over all keys, in [0, 1).
        init_cfg: As in mmengine.

    Raises:
        ValueError: If temperature or smoothing are out of range.
    """

    def __init__(
        self,
        predictor: dict,
        temperature: float = 0.2,
        label_smoothing: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not isinstance(temperature, int | float) or not 0 < temperature < float('inf'):
            raise ValueError(f'head.temperature={temperature} must be above 0; the paper uses 0.2.')
        if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
            raise ValueError(f'head.label_smoothing={label_smoothing} must be in [0, 1).')
        self.predictor = MODELS.build(predictor)
        self.temperature = temperature
        self.label_smoothing = label_smoothing

    def predict(self, projections: Tensor) -> Tensor:
        """Predict queries; one call per view group, so BatchNorm sees that group alone.

        Args:
            projections: ``(B, D)``, projector outputs of one view group.

        Returns:
            Tensor: ``(B, D)`` float32, L2-normalised.
        """
        return F.normalize(self.predictor((projections,))[0].float(), dim=-1)

    @torch.no_grad()
    def gather(self, keys: list[Tensor]) -> list[Tensor]:
        """Normalise the keys of all views and gather them from all ranks in one collective.

        Args:
            keys: One ``(N, D)`` tensor per view, the same ``N`` on every rank.

        Returns:
            list[Tensor]: One ``(W * N, D)`` float32 tensor per view, rank by rank.
        """
        stacked = F.normalize(torch.stack(keys).float(), dim=-1)  # (V, N, D)
        if dist.get_world_size() > 1:
            stacked = torch.cat(dist.all_gather(stacked.contiguous()), dim=1)  # (V, W * N, D)
        return list(stacked.unbind(0))

    def contrast(self, pairs: Sequence[Pair], images: range | None = None) -> Contrast:
        """Compute the soft cross-entropy of queries against gathered keys.

        Args:
            pairs: What to contrast.
            images: Which of the rank's ``N`` images the queries are of, where they are of
                a part of them.

        Returns:
            Contrast: Values in the order of the pairs.
        """
        # Queries of the same keys share their operations, which are many and small.
        views = list(dict.fromkeys(id(pair.keys) for pair in pairs))
        order = sorted(range(len(pairs)), key=lambda index: views.index(id(pairs[index].keys)))
        ordered = [pairs[index] for index in order]
        matches, weights = (
            copy_to_device(each, pairs[0].queries.device) for each in _lay_out(ordered, images)
        )
        entropy = copy_to_device(self._target_entropies(pairs), pairs[0].queries.device)
        compared, first = [], 0
        for _, group in groupby(ordered, lambda pair: id(pair.keys)):
            group = list(group)
            queries = torch.cat([pair.queries for pair in group])
            rows = slice(first, first := first + len(queries))
            compared.append(self._compare(queries, group[0].keys, matches[rows]))
        matched, least, best = map(torch.cat, zip(*compared, strict=True))
        loss = least - (1 - self.label_smoothing) * (matched * weights).sum(1)
        with torch.no_grad():
            # Ties count as hits: the best match is at least as near as any key.
            likely = matched.masked_fill(weights == 0, -torch.inf).amax(1)
            hits = (likely >= best).float()
        loss, accuracy = (_average(rows, ordered, order) for rows in (loss, hits))
        return Contrast(loss, accuracy, loss.detach() - entropy)

    def _compare(
        self, queries: Tensor, keys: Tensor, matches: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compare queries with keys.

        Args:
            queries: ``(R, D)``.
            keys: ``(W * N, D)``.
            matches: ``(R, K)``, rows of ``keys``.

        Returns:
            tuple: ``(R, K)`` logits of the matches; ``(R,)`` what of the loss is the same for any
            target; ``(R,)`` the largest logits.
        """
        with torch.autocast(queries.device.type, enabled=False):
            logits = (queries / self.temperature) @ keys.T  # (R, W * N)
        log_partition = logits.logsumexp(1)
        if self.label_smoothing:
            log_partition = log_partition - self.label_smoothing * logits.mean(1)
        return logits.gather(1, matches), log_partition, logits.detach().amax(1)

    @torch.no_grad()
    def measure_similarity(
        self, queries: Tensor, keys: Tensor, images: range | None = None
    ) -> dict[str, Tensor]:
        """Compare queries with the key of their own image, and with those of all others.

        Args:
            queries: ``(N, D)``, normalised, of one view.
            keys: ``(W * N, D)``, normalised, of another view.
            images: As in :meth:`contrast`.

        Returns:
            dict: Mean cosines, ``health/positive_similarity`` and ``health/negative_similarity``.
        """
        first = len(keys) // dist.get_world_size() * dist.get_rank() + (
            images.start if images else 0
        )
        own = (queries * keys[first : first + len(queries)]).sum(1)  # (N,)
        # The sum over all pairs, without computing any of them.
        pairs = (queries.sum(0) * keys.sum(0)).sum()
        others = (pairs - own.sum()) / (len(queries) * max(1, len(keys) - 1))
        return {'health/positive_similarity': own.mean(), 'health/negative_similarity': others}

    def _target_entropies(self, pairs: Sequence[Pair]) -> Tensor:
        """Compute the entropy of each pair's target row in nats: the least its loss can be."""
        smooth, num_keys = self.label_smoothing, len(pairs[0].keys)
        num_images = num_keys // dist.get_world_size()
        entropies = []
        for pair in pairs:
            offsets, weights = _read_target(pair)
            row = weights.new_zeros(num_images).index_add_(0, offsets % num_images, weights)
            row = (1 - smooth) * row + smooth / num_keys
            entropies.append(-torch.special.xlogy(row, row).sum())
        entropy = torch.stack(entropies)
        if smooth:  # the keys of other ranks hold nothing but the smoothing
            entropy -= (num_keys - num_images) * smooth / num_keys * math.log(smooth / num_keys)
        return entropy


def _read_target(pair: Pair) -> Target:
    """Return a target on the host, where what follows from it alone is worked out."""
    identity = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    offsets, weights = pair.target or identity
    return offsets.cpu(), weights.cpu()


def _lay_out(pairs: Sequence[Pair], images: range | None) -> Target:
    """Lay out the targets of all queries, on the host.

    Returns:
        tuple: ``(R, K)`` rows of the keys, int64, and ``(R, K)`` weights, float32, 0 where a query
        has fewer than K.
    """
    num_images = len(pairs[0].keys) // dist.get_world_size()
    images = images or range(num_images)
    targets = [_read_target(pair) for pair in pairs]
    most = max(len(offsets) for offsets, _ in targets)
    matches, shares = [], []
    for pair, target in zip(pairs, targets, strict=True):
        offsets, weights = (F.pad(each, (0, most - len(each))) for each in target)
        image = images.start + torch.arange(len(pair.queries)).to(offsets) % len(images)
        matches.append((image[:, None] + offsets) % num_images + dist.get_rank() * num_images)
        shares.append(weights.expand(len(pair.queries), -1))
    return torch.cat(matches), torch.cat(shares)


def _average(rows: Tensor, ordered: Sequence[Pair], order: Sequence[int]) -> Tensor:
    """Average over the queries of each pair; return the means in the first order, ``(P,)``."""
    parts = dict(zip(order, rows.split([len(pair.queries) for pair in ordered]), strict=True))
    return torch.stack([parts[index].mean() for index in range(len(parts))])
