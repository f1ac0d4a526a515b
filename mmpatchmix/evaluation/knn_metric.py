"""kNN accuracy of features, the numbers behind ``knn/top1``."""

from collections.abc import Sequence

import torch
from mmengine import dist
from mmengine.evaluator import BaseMetric

from mmpatchmix.evaluation.features import Features
from mmpatchmix.evaluation.knn import check_knn_settings, knn_predict
from mmpatchmix.registry import METRICS


@METRICS.register_module()
class KNNMetric(BaseMetric):
    """Compute top-1 and top-5 accuracy of weighted kNN, in percent; for :class:`KNNLoop`.

    ``knn/top1`` and ``knn/top5`` belong to the *first* of ``num_neighbors``, not to the best: a
    best of several k chosen on the test images would flatter. Each k is reported beside it as
    ``knn/top1_k20`` and so on.

    A metric of mmengine sees one batch of one data set at a time, and kNN needs a bank: loops
    other than :class:`KNNLoop` are refused when they are built.

    Args:
        num_neighbors: The k's; all come from one search.
        temperature: A vote weighs ``exp(similarity / temperature)``; None gives each neighbour
            one vote.

    Raises:
        ValueError: If a setting makes no sense.
    """

    default_prefix = 'knn'

    def __init__(
        self,
        num_neighbors: Sequence[int] = (10, 20, 100, 200),
        temperature: float | None = 0.07,
    ) -> None:
        check_knn_settings(num_neighbors, temperature)
        super().__init__()
        self.num_neighbors = num_neighbors
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
            queries: Q rows, the same on every rank.
            bank: M rows, the same on every rank.
            prefix: First part of the metric names.
            device: Where to compute.

        Returns:
            dict: Percentages by name, the same on every rank.

        Raises:
            ValueError: If either has no labels.
        """
        if queries.labels is None or bank.labels is None:
            raise ValueError('kNN accuracy needs labels of the bank and of the queries.')
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        predictions = knn_predict(
            queries.features[mine], bank.features, bank.labels, self.num_neighbors,
            self.temperature, device=device,
        )  # fmt: skip
        metrics = {}
        for k in dict.fromkeys(self.num_neighbors):
            right = predictions[k] == queries.labels[mine, None]  # (q, 5)
            hits = torch.stack([right[:, 0].sum(), right.sum()])  # of five classes one at most
            dist.all_reduce(hits)
            top1, top5 = (100 * hits.double() / len(queries.labels)).tolist()
            if not metrics:
                metrics = {f'{prefix}/top1': top1, f'{prefix}/top5': top5}
            metrics |= {f'{prefix}/top1_k{k}': top1, f'{prefix}/top5_k{k}': top5}
        return metrics

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        """Refuse the loops of mmengine, which set this before a run starts."""
        self.process(None, [])

    def process(self, data_batch, data_samples) -> None:
        """Raise ``ValueError``: there is no bank in a single batch."""
        raise ValueError(
            'mmpatchmix.KNNMetric needs features of a bank: set val_cfg (and test_cfg) to '
            "dict(type='mmpatchmix.KNNLoop', bank_dataloader=...)."
        )

    compute_metrics = process
