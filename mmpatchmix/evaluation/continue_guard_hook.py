"""Watch over a run that continues from trained weights: is it still as good as they were?"""

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.engine.checkpoint_hook import find_start
from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.evaluation.knn_loop import KNNLoop
from mmpatchmix.evaluation.rank_me import nearest_others, share_kept
from mmpatchmix.registry import HOOKS

KEY = 'continue_guard'
KNN, RANK_ME = 'knn/top1', 'geometry/rank_me'
REMEDIES = """Usual causes, the likeliest first, and what to do (--cfg-options):
  - steps too large for trained weights: optim_wrapper.optimizer.lr={lr:.1g} (a third), or
    optim_wrapper.paramwise_cfg.layer_decay_rate=0.65, which spares the first blocks
  - more epochs than the images are good for: --epochs {epochs}
  - crops that show too little of your images: a larger local_scale and global_scale
  - few other images to contrast with: a larger batch, by model.micro_batch_size where memory ends
default_hooks.guard.stop_if_worse=True ends such a run by itself."""


@HOOKS.register_module()
class ContinueGuardHook(Hook):
    """Compare each evaluation with one before the first step, and say when it is worse.

    With labels that is kNN: it is worse when it has lost more than a point and more than chance,
    two standard errors of a share of so many images. Without labels, two figures of the images
    that :class:`~mmpatchmix.evaluation.KNNLoop` looks at: RankMe, which falls when features
    collapse, and how many of an image's nearest neighbours are still those of the start. They
    cannot tell whether features get better; they do tell when what the checkpoint knew is lost.

    The start travels in the checkpoints, so that a resumed run is compared with the same.

    Args:
        stop_if_worse: Whether to end the run, with an error, instead of warning.
        num_neighbors: Neighbours of an image to look at where there are no labels.
        min_rank_me: Share of the start's RankMe below which it is worse.
        min_kept: Share of neighbours kept below which it is worse.

    Raises:
        ValueError: If a share is not in [0, 1], or there is no neighbour to look at.
    """

    priority = 'LOWEST'  # a run that is stopped has saved its epoch

    def __init__(
        self,
        stop_if_worse: bool = False,
        num_neighbors: int = 10,
        min_rank_me: float = 0.7,
        min_kept: float = 0.2,
    ) -> None:
        for name, value in (('min_rank_me', min_rank_me), ('min_kept', min_kept)):
            if not 0 <= value <= 1:
                raise ValueError(f'guard.{name}={value} is a share and must be in [0, 1].')
        if num_neighbors < 1:
            raise ValueError(f'guard.num_neighbors={num_neighbors} must be at least 1.')
        self.stop_if_worse = stop_if_worse
        self.num_neighbors = num_neighbors
        self.min_rank_me = min_rank_me
        self.min_kept = min_kept
        self.start: dict[str, Any] | None = None  # figures before the first step
        self._loaded: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Evaluate before the first step; a resumed run has done so.

        Raises:
            ValueError: If the run has no kNN evaluation.
        """
        loaded, self._loaded = self._loaded, None
        if not isinstance(runner.val_loop, KNNLoop):
            raise ValueError(
                'default_hooks.guard compares evaluations of mmpatchmix.KNNLoop, and the run has '
                'none: keep val_dataloader, val_cfg and val_evaluator.'
            )
        if runner.iter:
            self.start = loaded
            if loaded is None:
                runner.logger.warning('continue guard: the checkpoint does not tell the start.')
            return
        self._point_out_random_weights(runner)
        if self.start is not None:  # report.evaluate_untrained was here before
            return
        with random_states_kept():
            runner.val_loop.run()  # calls the hook below

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Judge an evaluation by its kNN, or by the features of unlabelled images."""
        metrics = metrics or {}
        if KNN in metrics:
            figures = {KNN: metrics[KNN], 'images': len(runner.val_loop.dataloader.dataset)}
        elif RANK_ME in metrics:
            features = runner.val_loop.unlabelled
            k = min(self.num_neighbors, len(features) - 1)
            figures = {'rank_me': metrics[RANK_ME], 'neighbors': nearest_others(features, k)}
        else:
            return
        self._judge(runner, figures, runner.epoch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let the start travel along."""
        if self.start is not None:
            checkpoint[KEY] = self.start

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the start for :meth:`before_train`, which knows whether the run is resumed."""
        self._loaded = checkpoint.get(KEY)

    def _point_out_random_weights(self, runner: Runner) -> None:
        if find_start(runner) is None:
            runner.logger.warning(
                'continue guard: the run starts from random weights, at a rate meant for trained '
                'ones. Name the checkpoint to continue from: --init FILE.'
            )

    def _judge(self, runner: Runner, now: dict[str, Any], epoch: int) -> None:
        """Compare with the start, and warn or stop where it is worse."""
        if self.start is None:
            self.start = now
            figure = f'kNN top-1 {now[KNN]:.1f} %' if KNN in now else f'RankMe {now["rank_me"]:.1f}'
            runner.logger.info(f'continue guard: before the first step, {figure}')
            return
        compare = self._compare_knn if KNN in now else self._compare_geometry
        faults = compare(runner, now, epoch)
        if not faults:
            return
        lr = runner.cfg.optim_wrapper.optimizer.lr / 3
        message = (
            f'continue guard: after epoch {epoch} the network is worse than what it started from. '
            f'{" ".join(faults)}\n{REMEDIES.format(lr=lr, epochs=max(1, epoch - 1))}'
        )
        if self.stop_if_worse:
            raise ValueError(message)
        runner.logger.warning(message)

    def _compare_knn(self, runner: Runner, now: dict[str, Any], epoch: int) -> list[str]:
        before = self.start[KNN]
        error = 100 * math.sqrt(before / 100 * (1 - before / 100) / now['images'])
        margin = max(1.0, 2 * error)
        if before - now[KNN] <= margin:
            return []
        return [
            f'kNN top-1 is {now[KNN]:.1f} %, it was {before:.1f} % (of {now["images"]:,} images; '
            f'up to {margin:.1f} points may be chance).'
        ]

    def _compare_geometry(self, runner: Runner, now: dict[str, Any], epoch: int) -> list[str]:
        before = self.start['rank_me']
        kept = share_kept(self.start['neighbors'], now['neighbors'])
        runner.visualizer.add_scalars({'guard/neighbors_kept': kept}, step=epoch)
        runner.logger.info(
            f'continue guard: RankMe {now["rank_me"]:.1f} (at the start {before:.1f}), '
            f'{100 * kept:.0f} % of the nearest neighbours are those of the start'
        )
        faults = []
        if now['rank_me'] < self.min_rank_me * before:
            faults.append(
                f'RankMe is {now["rank_me"]:.1f}, it was {before:.1f}: features use fewer '
                'dimensions.'
            )
        if kept < self.min_kept:
            faults.append(
                f'Of the nearest neighbours of an image {100 * kept:.0f} % are those of the start: '
                'little of what the checkpoint knew is left.'
            )
        return faults
