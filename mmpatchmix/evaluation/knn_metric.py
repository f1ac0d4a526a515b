"""kNN accuracy of features, the numbers behind ``knn/top1``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine import dist
from torch import Tensor

from mmpatchmix.evaluation.features import Features
from mmpatchmix.evaluation.knn import check_knn_settings, knn_predict
from mmpatchmix.registry import METRICS


@METRICS.register_module()
class KNNMetric:
    """Top-1 and top-5 accuracy of weighted kNN, in percent.

    The headline ``knn/top1`` and ``knn/top5`` belong to the *first* entry of
    ``num_neighbors``, not to the best one: a best of several k chosen on the
    test images would flatter. Every k is reported beside it as
    ``knn/top1_k20`` and so on.

    Args:
        num_neighbors (Sequence[int]): The k's; all come from one search.
        temperature (float, optional): Vote weight is
            ``exp(similarity / temperature)``; None gives each neighbour one vote.

    Raises:
        ValueError: If a setting makes no sense.
    """

    def __init__(
        self,
        num_neighbors: Sequence[int] = (10, 20, 100, 200),
        temperature: float | None = 0.07,
    ) -> None:
        self.num_neighbors = check_knn_settings(num_neighbors, temperature)
        self.temperature = temperature

    def compute(
        self,
        queries: Features,
        bank: Features,
        prefix: str = 'knn',
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Judge queries against a bank; ranks share the queries.

        Args:
            queries (Features): (Q, D) and (Q,), the same on every rank.
            bank (Features): (M, D) and (M,), the same on every rank.
            prefix (str): First part of the metric names.
            device (torch.device | str, optional): Where to compute.

        Returns:
            dict[str, float]: Percentages, the same on every rank.

        Raises:
            ValueError: If either has no labels.
        """
        if queries.labels is None or bank.labels is None:
            raise ValueError('kNN accuracy needs labels of the bank and of the queries.')
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        predictions = knn_predict(
            queries.features[mine],
            bank.features,
            bank.labels,
            self.num_neighbors,
            self.temperature,
            device=device,
        )
        hits = torch.stack([_count_hits(predictions[k], queries.labels[mine])
                            for k in self.num_neighbors])  # (k's, 2)  # fmt: skip
        dist.all_reduce(hits)
        accuracy = (100.0 * hits.double() / len(queries.labels)).tolist()
        metrics = {f'{prefix}/top1': accuracy[0][0], f'{prefix}/top5': accuracy[0][1]}
        for k, (top1, top5) in zip(self.num_neighbors, accuracy, strict=True):
            metrics[f'{prefix}/top1_k{k}'] = top1
            metrics[f'{prefix}/top5_k{k}'] = top5
        return metrics


def _count_hits(predictions: Tensor, labels: Tensor) -> Tensor:
    """Queries whose class is first, and among the first five, (2,) int64."""
    right = predictions == labels[:, None]  # (Q, 5)
    return torch.stack([right[:, 0].sum(), right.any(dim=1).sum()])
