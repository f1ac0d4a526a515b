"""kNN evaluation as a loop of mmengine's Runner, during training and after, and its metric."""

import logging
from collections.abc import Sequence

import torch
from mmengine import dist
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mmpatchmix.datasets.image_folder import adopt_classes
from mmpatchmix.evaluation.features import Features, collect, extract_features, is_labelled
from mmpatchmix.evaluation.knn import check_knn_settings, knn_predict
from mmpatchmix.evaluation.online_probe_hook import OnlineProbeHook
from mmpatchmix.evaluation.rank_me import measure_geometry
from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import LOOPS, METRICS

# float32 pixels of ImageNet at 224 would take 770 GB; of CIFAR-10 they take 0.7 GB.
_MAX_PIXEL_BYTES = 4 * 2**30
# Of LiDAR during training: images, and pairs of views of each.
_ONLINE_VIEWS = 250, 2


@METRICS.register_module()
class KNNMetric(BaseMetric):
    """Compute top-1 and top-5 accuracy of weighted kNN, in percent; for :class:`KNNLoop` only.

    ``knn/top1`` and ``knn/top5`` belong to the *first* of ``num_neighbors``, not to the best: the
    best of several k chosen on the test images would be biased. Each k is reported as
    ``knn/top1_k20`` and so on. Settings: see :func:`~mmpatchmix.evaluation.knn_predict`.
    """

    default_prefix = 'knn'

    def __init__(
        self, num_neighbors: Sequence[int] = (10, 20, 100, 200), temperature: float | None = 0.07
    ) -> None:
        check_knn_settings(num_neighbors, temperature)
        super().__init__()
        self.num_neighbors, self.temperature = num_neighbors, temperature

    def compute(
        self,
        queries: Features,
        bank: Features,
        prefix: str = 'knn',
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Classify queries by a bank, both with labels and the same on every rank.

        Ranks share the queries. Returns percentages by names with a prefix, on every rank.
        """
        if queries.labels is None or bank.labels is None:
            raise ValueError('kNN accuracy needs labels of the bank and of the queries.')
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        settings = self.num_neighbors, self.temperature, device
        predictions = knn_predict(queries.features[mine], *bank, *settings)
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
        """Raise ``ValueError`` in the loops of mmengine, which set this before a run starts."""
        self.process(None, [])

    def process(self, data_batch, data_samples) -> None:
        """Raise ``ValueError``: a single batch has no bank."""
        raise ValueError(
            'mmpatchmix.KNNMetric needs features of a bank: set val_cfg (and test_cfg) to '
            "dict(type='mmpatchmix.KNNLoop', bank_dataloader=...)."
        )

    compute_metrics = process


@LOOPS.register_module()
class KNNLoop(BaseLoop):
    """Validate or test by kNN on features of a bank and of queries.

    The same type serves ``val_cfg`` (online) and ``test_cfg`` (offline)::

        val_dataloader = dict(...)   # the queries
        val_cfg = dict(type='mmpatchmix.KNNLoop', bank_dataloader=dict(...))
        val_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))
        test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator

    Without labels the metrics are those of
    :func:`~mmpatchmix.evaluation.rank_me.measure_geometry`, with one warning.

    Args:
        runner: The Runner.
        dataloader: The queries.
        evaluator: One :class:`KNNMetric`, else ``ValueError``.
        bank_dataloader: The labelled images that vote, with the test pipeline and a
            ``DefaultSampler`` that does not shuffle.
        more_queries: Further queries by name, evaluated with the same bank: ``knn_NAME/...``.
        pixel_baseline: Also report ``pixels/...`` (``pixels_NAME/...``), the same kNN on the raw
            pixels of the test views; computed once.
        num_unlabelled: Number of images to evaluate without labels, every n-th of the queries.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        bank_dataloader: DataLoader | dict,
        more_queries: dict[str, DataLoader | dict] | None = None,
        pixel_baseline: bool = False,
        num_unlabelled: int = 2000,
    ) -> None:
        super().__init__(runner, dataloader)
        self.bank_dataloader = _build(runner, bank_dataloader)
        more = (more_queries or {}).items()
        self.more_queries = {name: _build(runner, loader) for name, loader in more}
        metainfo = getattr(self.bank_dataloader.dataset, 'metainfo', None)
        for each in (self.dataloader, *self.more_queries.values()):
            adopt_classes(each.dataset, metainfo)
        evaluator = runner.build_evaluator(evaluator)
        if [type(metric) for metric in evaluator.metrics] != [KNNMetric]:
            raise ValueError(
                "KNNLoop needs dict(type='mmpatchmix.KNNMetric') alone; the evaluator has "
                f'{[type(metric).__name__ for metric in evaluator.metrics]}.'
            )
        self.evaluator = evaluator
        self.pixel_baseline, self.num_unlabelled = pixel_baseline, num_unlabelled
        self.unlabelled: Tensor | None = None  # (N, D), of the last evaluation without labels
        self._labelled: bool | None = None
        self._pixel_metrics: dict[str, float] | None = None

    def run(self) -> dict[str, float]:
        """Return the metrics of the Runner's model, passed through its hooks."""
        if self._labelled is None:
            loaders = (self.bank_dataloader, self.dataloader)
            self._labelled = all(is_labelled(loader.dataset) for loader in loaders)
            message = 'The images have no labels: RankMe, LiDAR and the like instead of kNN.'
            if not self._labelled:
                print_log(message, 'current', logging.WARNING)
        phase = 'test' if getattr(self.runner, '_test_loop', None) is self else 'val'
        self.runner.call_hook(f'before_{phase}')
        self.runner.call_hook(f'before_{phase}_epoch')
        metrics = self.evaluate() if self._labelled else self.evaluate_unlabelled()
        self.runner.call_hook(f'after_{phase}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{phase}')
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Compute the metrics of labelled images without calling hooks."""
        model = self.runner.model
        bank = extract_features(model, self.bank_dataloader, title='kNN bank')
        queries = extract_features(model, self.dataloader, title='kNN queries')
        metrics = self.judge(queries, bank)
        for hook in self.runner.hooks:
            if isinstance(hook, OnlineProbeHook):
                metrics |= hook.judge(queries)
        return metrics

    def evaluate_unlabelled(self) -> dict[str, float]:
        """Compute the metrics that need no labels without calling hooks."""
        runner, loader, size = self.runner, self.dataloader, len(self.dataloader.dataset)
        images = Subset(loader.dataset, range(0, size, -(-size // self.num_unlabelled)))
        options = dict(num_workers=loader.num_workers, collate_fn=loader.collate_fn)
        sampler = DefaultSampler(images, shuffle=False)
        loader = DataLoader(images, loader.batch_size, sampler=sampler, **options)
        self.unlabelled = extract_features(runner.model, loader, title='unlabelled').features
        has_views = runner.cfg.get('train_dataloader')
        views = runner.train_dataloader.dataset if has_views else None
        return measure_geometry(unwrap_model(runner.model), self.unlabelled, views, *_ONLINE_VIEWS)

    def judge(self, queries: Features, bank: Features) -> dict[str, float]:
        """Return the kNN metrics of features, of further queries, and of pixels if requested."""
        device, (metric,) = next(self.runner.model.parameters()).device, self.evaluator.metrics
        metrics = metric.compute(queries, bank, device=device)
        for name, loader in self.more_queries.items():
            more = extract_features(self.runner.model, loader, title=f'kNN queries, {name}')
            metrics |= metric.compute(more, bank, f'knn_{name}', device)
        if self.pixel_baseline and self._pixel_metrics is None:
            self._pixel_metrics, bank = {}, self._pixels(self.bank_dataloader)
            more = {f'pixels_{name}': loader for name, loader in self.more_queries.items()}
            for prefix, loader in {'pixels': self.dataloader, **more}.items():
                self._pixel_metrics |= metric.compute(self._pixels(loader), bank, prefix, device)
        return metrics | (self._pixel_metrics or {})

    @staticmethod
    def _pixels(dataloader: DataLoader) -> Features:
        num_bytes = 4 * dataloader.dataset[0]['inputs'].numel() * len(dataloader.dataset)
        if num_bytes > _MAX_PIXEL_BYTES:
            raise ValueError(
                f'pixel_baseline would hold {num_bytes / 2**30:.0f} GB of raw pixels in memory; '
                'it is meant for small images. Set pixel_baseline=False.'
            )
        return collect(
            dataloader, lambda batch: torch.stack([*batch['inputs']]).flatten(1), 'pixels'
        )


def _build(runner: Runner, dataloader: DataLoader | dict) -> DataLoader:
    """Build a data loader, unless it is one, with the seeds of mmengine's loops."""
    diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
    return runner.build_dataloader(dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed)
