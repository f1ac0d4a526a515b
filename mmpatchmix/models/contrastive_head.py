"""Predictor, gathering of keys and the soft contrastive cross-entropy."""

import math
from typing import NamedTuple

import torch
from mmengine import dist
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import functional as F

from mmpatchmix.models.mixing import Target
from mmpatchmix.registry import MODELS
from mmpatchmix.views.plan import send


class Contrast(NamedTuple):
    """Results of one contrast of queries against keys: three float32 scalars."""

    loss: Tensor  # the cross-entropy, with gradient
    accuracy: Tensor  # share of queries whose nearest key is one with weight, in [0, 1]
    kl: Tensor  # KL(target || prediction) = cross-entropy - entropy of the target, nats


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

    def contrast(
        self,
        queries: Tensor,
        keys: Tensor,
        target: Target | None = None,
        images: range | None = None,
    ) -> Contrast:
        """Compute the soft cross-entropy of queries against gathered keys.

        Args:
            queries: ``(V * N, D)``, from :meth:`predict`: one or more views of the
                rank's batch, one after the other.
            keys: ``(W * N, D)``, one view of :meth:`gather`.
            target: ``(offsets, weights)``; None is the identity, each image itself.
            images: Which of the rank's ``N`` images the queries are of, where they are of
                a part of them: ``(V * len(images), D)``.

        Returns:
            Contrast: Means over all queries.
        """
        device = queries.device
        num_images = len(keys) // dist.get_world_size()
        if target is None:
            target = torch.zeros(1, dtype=torch.int64), torch.ones(1)
        offsets, weights = target
        # Whatever follows from the target alone is worked out where it is: on the host.
        images = images or range(num_images)
        image = images.start + torch.arange(len(queries)).to(offsets) % len(images)
        matches = (image[:, None] + offsets) % num_images + dist.get_rank() * num_images
        entropy = self._target_entropy(offsets, weights, num_images, len(keys))
        matches, weights = send(matches, queries), send(weights, queries)
        with torch.autocast(device.type, enabled=False):
            logits = queries @ keys.T / self.temperature  # (V * N, W * N)
        matched = logits.gather(1, matches)  # (V * N, K)
        log_partition = logits.logsumexp(1)
        loss = log_partition - (1 - self.label_smoothing) * (matched * weights).sum(1)
        if self.label_smoothing:
            loss = loss - self.label_smoothing * logits.mean(1)
        loss = loss.mean()
        with torch.no_grad():
            # Ties count as hits: the best match is at least as near as any key.
            likely = matched.masked_fill(weights == 0, -torch.inf).amax(1)
            accuracy = (likely >= logits.amax(1)).float().mean()
            kl = loss - entropy
        return Contrast(loss, accuracy, kl)

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

    def _target_entropy(
        self, offsets: Tensor, weights: Tensor, num_images: int, num_keys: int
    ) -> Tensor:
        """Compute the entropy of a target row in nats: the least its cross-entropy can be."""
        smooth = self.label_smoothing
        row = weights.new_zeros(num_images).index_add_(0, offsets % num_images, weights)
        row = (1 - smooth) * row + smooth / num_keys
        entropy = -torch.special.xlogy(row, row).sum()
        if smooth:  # the keys of other ranks hold nothing but the smoothing
            entropy -= (num_keys - num_images) * smooth / num_keys * math.log(smooth / num_keys)
        return entropy
