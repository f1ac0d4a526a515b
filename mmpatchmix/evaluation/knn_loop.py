"""kNN evaluation as a loop of mmengine's Runner, during training and after."""

import logging

from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import BaseLoop
from torch.utils.data import DataLoader

from mmpatchmix.evaluation.features import (
    Features,
    extract_features,
    extract_pixels,
    is_labelled,
)
from mmpatchmix.evaluation.knn_metric import KNNMetric
from mmpatchmix.registry import LOOPS

# float32 pixels of ImageNet at 224 would take 770 GB; of CIFAR-10 they take 0.7 GB.
_MAX_PIXEL_BYTES = 4 * 2**30


@LOOPS.register_module()
class KNNLoop(BaseLoop):
    """Validate or test: features of a bank and of queries, then kNN.

    The same type serves ``val_cfg`` (online) and ``test_cfg`` (offline)::

        val_dataloader = dict(...)   # the queries
        val_cfg = dict(type='mmpatchmix.KNNLoop', bank_dataloader=dict(...))
        val_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))
        test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator

    The metrics pass through the Runner's hooks, so they reach the log and
    ``CheckpointHook(save_best='knn/top1')`` works. Without labels there is no evaluation: the
    loop says so once, and calls no hook.

    Args:
        runner: The Runner.
        dataloader: The queries.
        evaluator: One :class:`KNNMetric`.
        bank_dataloader: The labelled images that vote, with the test pipeline and a
            ``DefaultSampler`` that does not shuffle.
        more_queries: Data loaders of further queries by name, judged against the same bank:
            ``knn_NAME/...``.
        pixel_baseline: Also report ``pixels/...`` (``pixels_NAME/...``), the same kNN on the raw
            pixels of the test views; computed once.

    Raises:
        ValueError: If the evaluator is not one KNNMetric.
    """

    def __init__(
        self,
        runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        bank_dataloader: DataLoader | dict,
        more_queries: dict[str, DataLoader | dict] | None = None,
        pixel_baseline: bool = False,
    ) -> None:
        super().__init__(runner, dataloader)
        self.bank_dataloader = _build(runner, bank_dataloader)
        self.more_queries = {
            name: _build(runner, cfg) for name, cfg in (more_queries or {}).items()
        }
        if not isinstance(evaluator, Evaluator):
            evaluator = runner.build_evaluator(evaluator)
        self.evaluator = evaluator
        metrics = evaluator.metrics
        if len(metrics) != 1 or not isinstance(metrics[0], KNNMetric):
            raise ValueError(
                "KNNLoop is judged by dict(type='mmpatchmix.KNNMetric') alone; the evaluator has "
                f'{[type(metric).__name__ for metric in metrics]}.'
            )
        self.metric: KNNMetric = metrics[0]
        self.pixel_baseline = pixel_baseline
        self._labelled: bool | None = None
        self._pixel_metrics: dict[str, float] | None = None

    def run(self) -> dict[str, float]:
        """Evaluate the Runner's model.

        Returns:
            dict: Percentages by name, empty for unlabelled images.
        """
        if self._labelled is None:
            loaders = (self.bank_dataloader, self.dataloader)
            self._labelled = all(is_labelled(loader.dataset) for loader in loaders)
            if not self._labelled:
                message = 'kNN evaluation is skipped: the images have no labels.'
                print_log(message, 'current', logging.WARNING)
        if not self._labelled:
            return {}
        # mmengine builds both loops alike; only the Runner knows which this is.
        phase = 'test' if getattr(self.runner, '_test_loop', None) is self else 'val'
        self.runner.call_hook(f'before_{phase}')
        self.runner.call_hook(f'before_{phase}_epoch')
        metrics = self.evaluate()
        self.runner.call_hook(f'after_{phase}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{phase}')
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Compute the metrics without telling any hook."""
        model = self.runner.model
        bank = extract_features(model, self.bank_dataloader, title='kNN bank')
        queries = extract_features(model, self.dataloader, title='kNN queries')
        return self.judge(queries, bank)

    def judge(self, queries: Features, bank: Features) -> dict[str, float]:
        """Compute the metrics of features, of further queries, and of pixels where asked for.

        Args:
            queries: Q rows.
            bank: M rows.

        Returns:
            dict: ``knn/...`` and perhaps ``knn_NAME/...`` and ``pixels/...``, in percent.

        Raises:
            ValueError: If labels are missing, or the pixels would not fit into memory.
        """
        device = next(self.runner.model.parameters()).device
        metrics = self.metric.compute(queries, bank, device=device)
        for name, loader in self.more_queries.items():
            more = extract_features(self.runner.model, loader, title=f'kNN queries, {name}')
            metrics |= self.metric.compute(more, bank, f'knn_{name}', device)
        if self.pixel_baseline and self._pixel_metrics is None:
            self._pixel_metrics = {}
            bank = self._pixels(self.bank_dataloader)
            for name, loader in {'': self.dataloader, **self.more_queries}.items():
                prefix = f'pixels_{name}' if name else 'pixels'
                pixels = self._pixels(loader)
                self._pixel_metrics |= self.metric.compute(pixels, bank, prefix, device)
        return metrics | (self._pixel_metrics or {})

    @staticmethod
    def _pixels(dataloader: DataLoader) -> Features:
        num_bytes = 4 * dataloader.dataset[0]['inputs'].numel() * len(dataloader.dataset)
        if num_bytes > _MAX_PIXEL_BYTES:
            raise ValueError(
                f'pixel_baseline would hold {num_bytes / 2**30:.0f} GB of raw pixels in memory; '
                'it is meant for small images. Set pixel_baseline=False.'
            )
        return extract_pixels(dataloader)


def _build(runner, dataloader: DataLoader | dict) -> DataLoader:
    """Build a data loader with the seeds that mmengine's loops give."""
    if not isinstance(dataloader, dict):
        return dataloader
    diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
    return runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed)
