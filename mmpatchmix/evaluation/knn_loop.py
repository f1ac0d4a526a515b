"""kNN evaluation as a loop of mmengine's Runner, during training and after."""

from __future__ import annotations

import logging

import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import BaseLoop
from torch.utils.data import DataLoader

from mmpatchmix.evaluation.features import Features, extract_features, extract_pixels
from mmpatchmix.evaluation.knn_metric import KNNMetric
from mmpatchmix.registry import LOOPS

# float32 pixels of ImageNet at 224 would take 770 GB; of CIFAR-10 they take 0.7 GB.
_MAX_PIXEL_BYTES = 4 * 2**30


@LOOPS.register_module()
class KNNLoop(BaseLoop):
    """Validation and test loop: features of a bank and of queries, then kNN.

    The same type serves ``val_cfg`` (online) and ``test_cfg`` (offline)::

        val_dataloader = dict(...)   # the queries
        val_cfg = dict(type='mmpatchmix.KNNLoop', bank_dataloader=dict(...))
        val_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))
        test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator

    The metrics pass through the Runner's hooks, so they reach the log and
    ``CheckpointHook(save_best='knn/top1')`` works. A data set without labels
    (``metainfo['labelled'] = False``, or samples without ``gt_label``) is said
    once and gives no metrics.

    Args:
        runner (Runner): The Runner.
        dataloader (DataLoader | dict): The queries.
        evaluator (Evaluator | dict | list): One :class:`KNNMetric`.
        bank_dataloader (DataLoader | dict): The labelled images that vote, with
            the test pipeline and a ``DefaultSampler`` that does not shuffle.
        pixel_baseline (bool): Also report ``pixels/...``, the same kNN on the
            raw pixels of the test views; computed once.

    Raises:
        ValueError: If the evaluator is not one KNNMetric.
    """

    def __init__(
        self,
        runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        bank_dataloader: DataLoader | dict,
        pixel_baseline: bool = False,
    ) -> None:
        super().__init__(runner, dataloader)
        self.bank_dataloader = _BankLoop(runner, bank_dataloader).dataloader
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
        self._pixel_metrics: dict[str, float] | None = None
        self._said_unlabelled = False

    def run(self) -> dict[str, float]:
        """Evaluate the Runner's model.

        Returns:
            dict[str, float]: Percentages by name, empty for unlabelled data.
        """
        # mmengine builds both loops alike; only the Runner knows which this is.
        phase = 'test' if getattr(self.runner, '_test_loop', None) is self else 'val'
        self.runner.call_hook(f'before_{phase}')
        self.runner.call_hook(f'before_{phase}_epoch')
        metrics = self.evaluate()
        self.runner.call_hook(f'after_{phase}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{phase}')
        return metrics

    def evaluate(self) -> dict[str, float]:
        """The metrics alone, without telling any hook."""
        loaders = (self.bank_dataloader, self.dataloader)
        if not all(_may_be_labelled(loader) for loader in loaders):
            return self._skip()
        model = self.runner.model
        device = next(model.parameters()).device
        bank = extract_features(model, self.bank_dataloader, title='kNN bank')
        queries = extract_features(model, self.dataloader, title='kNN queries')
        if bank.labels is None or queries.labels is None:
            return self._skip()
        metrics = self.metric.compute(queries, bank, device=device)
        if self.pixel_baseline:
            metrics.update(self.judge_pixels(device))
        return metrics

    def judge_pixels(self, device: torch.device | str | None = None) -> dict[str, float]:
        """kNN on the raw pixels of the test views; computed at the first call.

        Args:
            device (torch.device | str, optional): Where to compute.

        Returns:
            dict[str, float]: ``pixels/top1`` and so on, in percent.

        Raises:
            ValueError: If the pixels would not fit into memory.
        """
        if self._pixel_metrics is None:
            bank, queries = self._pixels(self.bank_dataloader), self._pixels(self.dataloader)
            self._pixel_metrics = self.metric.compute(queries, bank, 'pixels', device)
        return self._pixel_metrics

    @staticmethod
    def _pixels(dataloader: DataLoader) -> Features:
        values = dataloader.dataset[0]['inputs'].numel() * len(dataloader.dataset)
        if 4 * values > _MAX_PIXEL_BYTES:
            raise ValueError(
                f'pixel_baseline would hold {4 * values / 2**30:.0f} GB of raw pixels in memory; '
                'it is meant for small images. Set pixel_baseline=False.'
            )
        return extract_pixels(dataloader)

    def _skip(self) -> dict[str, float]:
        if not self._said_unlabelled:
            print_log(
                'kNN evaluation is skipped: the images have no labels.', 'current', logging.WARNING
            )
        self._said_unlabelled = True
        return {}


class _BankLoop(BaseLoop):
    """Builds the bank's data loader exactly as mmengine builds a loop's own."""

    def run(self) -> None:
        raise NotImplementedError


def _may_be_labelled(dataloader: DataLoader) -> bool:
    return (getattr(dataloader.dataset, 'metainfo', None) or {}).get('labelled', True)
