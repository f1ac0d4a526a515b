"""Accuracy of classifiers; short, because the rest is upstream's."""

from mmpretrain.evaluation import Accuracy as BaseAccuracy

from mmpatchmix.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseAccuracy):
    """mmpretrain's accuracy, leaving out each k of ``topk`` that exceeds the number of classes."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        """See the base class."""
        num_classes = results[0]['pred_score'].numel()
        self.topk = tuple(k for k in self.topk if k <= num_classes)
        return super().compute_metrics(results)
