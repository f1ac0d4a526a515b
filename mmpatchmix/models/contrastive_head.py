"""The head: predictor, all-gather of keys and soft contrastive cross-entropy."""

from typing import NamedTuple

import torch
from mmengine import dist
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import functional as F

from mmpatchmix.models.mixing import Target, copy_to_device
from mmpatchmix.registry import MODELS


class Contrast(NamedTuple):
    """Means over the queries of one contrast; scalars, float32."""

    loss: Tensor  # the cross-entropy, with gradient
    accuracy: Tensor  # share of queries whose nearest key has a weight, in [0, 1]
    kl: Tensor  # KL(target || prediction) = cross-entropy - entropy of the target, nats


@MODELS.register_module()
class ContrastiveHead(BaseModule):
    """Contrast predicted queries with the keys of all ranks.

    ``ce(q, k, Y) = -mean_n sum_m Y_nm * log softmax_m(q_n . k_m / tau)`` with
    normalised ``q`` and ``k``, in float32 (https://arxiv.org/abs/2306.12243). The rows of the
    target ``Y`` are ``(offsets, weights)``, see :mod:`mmpatchmix.models.mixing`.

    Args:
        predictor: Config of the predictor (a neck of mmpretrain).
        temperature: ``tau``, above 0.
        mix_temperature: ``tau`` of the terms of mixed queries; by default the same.
        label_smoothing: Share of the target spread evenly over all keys, in [0, 1).
        init_cfg: As in mmengine.

    Raises:
        ValueError: If temperature or smoothing are out of range.
    """

    def __init__(
        self,
        predictor: dict,
        temperature: float = 0.2,
        mix_temperature: float | None = None,
        label_smoothing: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        mix_temperature = temperature if mix_temperature is None else mix_temperature
        for name, tau in (('temperature', temperature), ('mix_temperature', mix_temperature)):
            if not isinstance(tau, int | float) or not 0 < tau < float('inf'):
                raise ValueError(f'head.{name}={tau} must be above 0; the paper uses 0.2.')
        if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
            raise ValueError(f'head.label_smoothing={label_smoothing} must be in [0, 1).')
        self.predictor = MODELS.build(predictor)
        self.temperature = temperature
        self.mix_temperature = mix_temperature
        self.label_smoothing = label_smoothing

    def predict(self, projections: Tensor) -> Tensor:
        """Predict the queries of one view group, whose BatchNorm statistics are its own.

        Takes projector outputs ``(B, D)``; returns ``(B, D)`` float32, L2-normalised.
        """
        return F.normalize(self.predictor((projections,))[0].float(), dim=-1)

    @torch.no_grad()
    def gather(self, keys: list[Tensor]) -> list[Tensor]:
        """Normalise the keys of all views and gather them from all ranks in one collective.

        Takes one ``(N, D)`` tensor per view, the same ``N`` on every rank; returns one
        ``(W * N, D)`` float32 tensor per view, rank by rank.
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
            queries: ``(V * n, D)``, from :meth:`predict`: V views of n images, view by view.
            keys: ``(W * N, D)``, one view of :meth:`gather`.
            target: Soft target of mixed queries, on the host; by default each image itself.
            images: Indices of the ``n`` images among the rank's ``N``; all by default.
        """
        num_images = len(keys) // dist.get_world_size()
        images = images or range(num_images)
        temperature = self.temperature if target is None else self.mix_temperature
        identity = torch.zeros(1, dtype=torch.int64), torch.ones(1)
        offsets, weights = (part.cpu() for part in target or identity)  # (K,) each
        image = images.start + torch.arange(len(queries)) % len(images)
        columns = (image[:, None] + offsets) % num_images + dist.get_rank() * num_images  # (V*n, K)
        entropy = self._compute_entropy(offsets % num_images, weights, len(keys))
        columns = copy_to_device(columns, queries.device)
        weights = copy_to_device(weights.to(queries.dtype), queries.device)

        with torch.autocast(queries.device.type, enabled=False):
            log_p = ((queries / temperature) @ keys.T).log_softmax(1)  # (V * n, W * N)
            matched = log_p.gather(1, columns)  # (V * n, K)
            loss = -(matched @ weights).mean()
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss - self.label_smoothing * log_p.mean()
        with torch.no_grad():  # keys as near as the nearest one count as hits
            hits = matched.masked_fill(weights == 0, -torch.inf).amax(1) >= log_p.amax(1)
        return Contrast(loss, hits.float().mean(), loss.detach() - entropy)

    def _compute_entropy(self, matches: Tensor, weights: Tensor, num_keys: int) -> Tensor:
        """Compute the entropy of a target row in nats, the minimum of its loss; a host scalar."""
        row = torch.zeros(num_keys).index_add_(0, matches, weights)
        row = (1 - self.label_smoothing) * row + self.label_smoothing / num_keys
        return torch.special.entr(row).sum()

    @torch.no_grad()
    def measure_similarity(
        self, queries: Tensor, keys: Tensor, images: range | None = None
    ) -> dict[str, Tensor]:
        """Compute mean cosines of queries with the keys of their own images and of all others.

        Takes normalised queries ``(N, D)`` of one view and keys ``(W * N, D)`` of another.
        """
        first = len(keys) // dist.get_world_size() * dist.get_rank()
        first += images.start if images else 0
        own = (queries * keys[first : first + len(queries)]).sum(1)  # (N,)
        # The sum of all products is the product of the sums.
        pairs = (queries.sum(0) * keys.sum(0)).sum()
        others = (pairs - own.sum()) / (len(queries) * max(1, len(keys) - 1))
        return {'health/positive_similarity': own.mean(), 'health/negative_similarity': others}
