"""Measures, beside the log, how a run is, and says in words when it is not well."""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from mmpatchmix.engine.run_plan import global_batch
from mmpatchmix.evaluation.health import (
    Line,
    Trouble,
    find_troubles,
    forget_some,
    measure_features,
)
from mmpatchmix.evaluation.training_features import TrainingFeatures
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS

KEY = 'health'
# Decompositions of features of 384 dimensions take 0.2 s: done about so often in a run, they are no
# matter in long runs, and short ones have small networks.
NUM_LOOKS = 100
FEATURES = ('rankme', 'lidar', 'feature_std')


@HOOKS.register_module()
class HealthHook(Hook):
    """Add figures to every line of the log, and point out troubles, once each.

    - ``health/data_share``: share of the time in which the process waits for data;
      ``health/images_per_second``: over all ranks.
    - Of a PatchMix, RankMe, LiDAR and the spread of the features that the last steps have computed
      anyway: ``health/rankme``, ``health/lidar``, ``health/feature_std``. Those of the first rank,
      of the last ``num_images`` images, about a hundred times in a run.

    Troubles go to the log and to ``vis_data/health.jsonl``: collapse, divergence, a plateau, data
    that training waits for; see :mod:`mmpatchmix.evaluation.health`. Nothing is read off the
    device but when losses are logged. What the hook knows is part of checkpoints.

    Args:
        num_images: Images whose features are looked at; LiDAR wants more than features have
            dimensions.

    Raises:
        ValueError: If they are fewer than 2.
    """

    def __init__(self, num_images: int = 1024) -> None:
        if num_images < 2:
            raise ValueError(f'health.num_images={num_images} must be at least 2.')
        self.num_images = num_images
        self._features: TrainingFeatures | None = None
        self._recent: deque[Tensor] = deque()  # (N, 2, D) of the last steps
        self._lines: list[Line] = []
        self._told: set[str] = set()
        self._loaded: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Begin to listen; take over what a resumed run has seen."""
        loaded, self._loaded = self._loaded, None
        model = unwrap_model(runner.model)
        if isinstance(model, PatchMix) and dist.is_main_process():
            self._features = TrainingFeatures(model)
        if runner.iter and loaded is not None:
            self._lines = [Line(*line) for line in loaded['lines']]
            self._told = set(loaded['told'])
            device = next(model.parameters()).device
            self._recent = deque(pairs.to(device) for pairs in loaded['recent'])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Remember the features of the step; measure and judge where the log gets a line."""
        self._remember()
        if not self._is_logged(runner, batch_idx):
            return
        figures = self._measure(runner)
        for name in FEATURES:  # or the log would repeat them
            runner.message_hub.log_scalars.pop(f'train/health/{name}', None)
        for name, value in figures.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        self._lines.append(self._read_line(runner, figures))
        forget_some(self._lines)
        for trouble in find_troubles(
            self._lines, runner.max_iters, global_batch(runner), self._loads_beside(runner)
        ):
            self._tell(runner, trouble)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let what was seen travel along."""
        checkpoint[KEY] = {
            'lines': [tuple(line) for line in self._lines],
            'told': sorted(self._told),
            'recent': [pairs.cpu() for pairs in self._recent],
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state for :meth:`before_train`, which knows whether the run is resumed."""
        self._loaded = checkpoint.get(KEY)

    def _remember(self) -> None:
        if self._features is None or (pairs := self._features.take()) is None:
            return
        self._recent.append(pairs)
        while sum(map(len, self._recent)) - len(self._recent[0]) >= self.num_images:
            self._recent.popleft()

    def _is_logged(self, runner: Runner, batch_idx: int) -> bool:
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        if not intervals or not dist.is_main_process():
            return False
        if self.every_n_inner_iters(batch_idx, intervals[0]):
            return True
        loader = runner.train_dataloader
        return self.end_of_epoch(loader, batch_idx) and len(loader) <= intervals[0]

    def _measure(self, runner: Runner) -> dict[str, float]:
        seconds = self._mean(runner, 'time')
        figures = {
            'health/data_share': self._mean(runner, 'data_time') / seconds,
            'health/images_per_second': global_batch(runner) / seconds,
        }
        looks = [line.iteration for line in self._lines if not math.isnan(line.dimensions)]
        is_due = not looks or runner.iter + 1 - looks[-1] >= runner.max_iters / NUM_LOOKS
        if is_due and sum(map(len, self._recent)) >= self.num_images:
            pairs = torch.cat(list(self._recent))[-self.num_images :]
            # On the host: the device has been waited for, for the log.
            figures |= measure_features(pairs.cpu().float())
        return figures

    def _read_line(self, runner: Runner, figures: dict[str, float]) -> Line:
        return Line(
            runner.iter + 1,
            max(rate for rates in runner.optim_wrapper.get_lr().values() for rate in rates),
            figures['health/data_share'],
            self._mean(runner, 'kl'),
            self._mean(runner, 'kl_source'),
            min(figures.get(f'health/{name}', math.nan) for name in FEATURES[:2]),
        )

    @staticmethod
    def _mean(runner: Runner, name: str) -> float:
        history = runner.message_hub.log_scalars.get(f'train/{name}')
        return float(history.mean(runner.log_processor.window_size)) if history else math.nan

    @staticmethod
    def _loads_beside(runner: Runner) -> bool:
        on_cpu = next(runner.model.parameters()).device.type == 'cpu'
        return not on_cpu or runner.train_dataloader.num_workers > 0

    def _tell(self, runner: Runner, trouble: Trouble) -> None:
        if trouble.name in self._told:
            return
        if trouble.name == 'plateau' and self._told & {'collapse', 'divergence'}:
            return  # which has been explained
        self._told.add(trouble.name)
        runner.logger.warning(f'{trouble.name}: {trouble.message}\n  {trouble.hint}')
        record = {'iter': runner.iter + 1, 'epoch': runner.epoch + 1} | trouble._asdict()
        path = Path(runner.log_dir) / 'vis_data' / 'health.jsonl'
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
        except OSError as error:  # a full disk: training goes on
            runner.logger.error(f'{path} is not written ({error}); the run goes on.')
