"""Comparison of a run that continues from trained weights with these weights."""

import math
from typing import Any

from mmengine.runner import Runner

from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.engine.exact_resume import StatefulHook
from mmpatchmix.engine.schedules import find_start
from mmpatchmix.evaluation.knn_loop import KNNLoop
from mmpatchmix.evaluation.rank_me import nearest_others, share_kept
from mmpatchmix.registry import HOOKS

KNN, RANK_ME = 'knn/top1', 'geometry/rank_me'
REMEDIES = """Usual causes, the most likely first, and remedies (--cfg-options):
  - steps too large for trained weights: optim_wrapper.optimizer.lr={lr:.1g} (a third), or
    optim_wrapper.paramwise_cfg.layer_decay_rate=0.65, which changes the first blocks less
  - too many epochs for the number of images: --epochs {epochs}
  - crops that contain too little of an image: a larger local_scale and global_scale
  - few other images to contrast with: a larger batch, by model.micro_batch_size where memory ends
default_hooks.guard.stop_if_worse=True stops such a run."""


@HOOKS.register_module()
class ContinueGuardHook(StatefulHook):
    """Compare each evaluation with one before the first step, and warn when it is worse.

    With labels, kNN is worse when it has lost more than a point and more than two standard errors
    of a share of so many images. Without labels, RankMe, which falls when features collapse, is
    compared, and how many of an image's nearest neighbours are still those of the start. The
    figures of the start are part of checkpoints.

    Args:
        stop_if_worse: Whether to stop the run with an error instead of a warning.
        num_neighbors: Neighbours of an image that are compared without labels, at least 1.
        min_rank_me: Share of the start's RankMe below which a run is worse, in [0, 1].
        min_kept: Share of neighbours kept below which a run is worse, in [0, 1].
    """

    priority = 'LOWEST'  # a run that is stopped has saved its epoch
    key = 'continue_guard'

    def __init__(
        self,
        stop_if_worse: bool = False,
        num_neighbors: int = 10,
        min_rank_me: float = 0.7,
        min_kept: float = 0.2,
    ) -> None:
        for name, value in dict(min_rank_me=min_rank_me, min_kept=min_kept).items():
            if not 0 <= value <= 1:
                raise ValueError(f'guard.{name}={value} is a share and must be in [0, 1].')
        if num_neighbors < 1:
            raise ValueError(f'guard.num_neighbors={num_neighbors} must be at least 1.')
        self.stop_if_worse, self.num_neighbors = stop_if_worse, num_neighbors
        self.min_rank_me, self.min_kept = min_rank_me, min_kept
        self.start: dict[str, Any] | None = None  # figures before the first step

    def before_train(self, runner: Runner) -> None:
        """Evaluate before the first step, or restore the figures of a resumed run."""
        loaded = self.pop_loaded_state()
        if not isinstance(runner.val_loop, KNNLoop):
            raise ValueError(
                'default_hooks.guard compares evaluations of mmpatchmix.KNNLoop, and the run has '
                'none: keep val_dataloader, val_cfg and val_evaluator.'
            )
        if runner.iter:
            self.start = loaded
            if loaded is None:
                runner.logger.warning('continue guard: the checkpoint holds no figures to compare.')
            return
        if find_start(runner) is None:
            runner.logger.warning(
                'continue guard: the run starts from random weights, at a learning rate meant for '
                'trained ones. Name the checkpoint to continue from: --init FILE.'
            )
        if self.start is None:  # unless report.evaluate_untrained has evaluated already
            with random_states_kept():
                runner.val_loop.run()  # calls after_val_epoch

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Store the first evaluation; compare later ones with it, and warn or stop."""
        if KNN in (metrics := metrics or {}):
            now = {KNN: metrics[KNN], 'images': len(runner.val_loop.dataloader.dataset)}
            text, compare = f'kNN top-1 {now[KNN]:.1f} %', self._compare_knn
        elif RANK_ME in metrics:
            features = runner.val_loop.unlabelled
            k = min(self.num_neighbors, len(features) - 1)
            now = {'rank_me': metrics[RANK_ME], 'neighbors': nearest_others(features, k)}
            text, compare = f'RankMe {now["rank_me"]:.1f}', self._compare_geometry
        else:
            return
        if self.start is None:
            self.start = now
            runner.logger.info(f'continue guard: before the first step, {text}')
        elif faults := compare(runner, now):
            epoch, lr = runner.epoch, runner.cfg.optim_wrapper.optimizer.lr / 3
            message = (
                f'continue guard: after epoch {epoch} the network is worse than at the start. '
                f'{" ".join(faults)}\n{REMEDIES.format(lr=lr, epochs=max(1, epoch - 1))}'
            )
            if self.stop_if_worse:
                raise ValueError(message)
            runner.logger.warning(message)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the figures before the first step."""
        return self.start

    def _compare_knn(self, runner: Runner, now: dict[str, Any]) -> list[str]:
        before, top1, images = self.start[KNN], now[KNN], now['images']
        margin = max(1.0, 200 * math.sqrt(before / 100 * (1 - before / 100) / images))
        chance = f'of {images:,} images; up to {margin:.1f} points may be chance'
        fault = f'kNN top-1 is {top1:.1f} %, it was {before:.1f} % ({chance}).'
        return [fault] if before - top1 > margin else []

    def _compare_geometry(self, runner: Runner, now: dict[str, Any]) -> list[str]:
        before, rank = self.start['rank_me'], now['rank_me']
        kept = share_kept(self.start['neighbors'], now['neighbors'])
        runner.visualizer.add_scalars({'guard/neighbors_kept': kept}, step=runner.epoch)
        runner.logger.info(
            f'continue guard: RankMe {rank:.1f} (at the start {before:.1f}), '
            f'{100 * kept:.0f} % of the nearest neighbours are those of the start'
        )
        faults = []
        if rank < self.min_rank_me * before:
            faults.append(f'RankMe is {rank:.1f}, it was {before:.1f}: fewer dimensions are used.')
        if kept < self.min_kept:
            lost = 'the features of the checkpoint are mostly lost.'
            share = f'{100 * kept:.0f} % of the nearest neighbours of an image'
            faults.append(f'{share} are those of the start: {lost}')
        return faults
