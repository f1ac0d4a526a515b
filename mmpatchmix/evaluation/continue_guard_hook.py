"""Watch over a run that continues from trained weights: is it still as good as they were?"""

import math
from typing import Any

from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from mmpatchmix.engine.random_states import random_states_kept
from mmpatchmix.evaluation.features import extract_features
from mmpatchmix.evaluation.geometry import nearest_others, rank_me, share_kept
from mmpatchmix.models import unwrap_model
from mmpatchmix.models.vit import find_pretrained
from mmpatchmix.registry import HOOKS

KEY = 'continue_guard'
KNN = 'knn/top1'
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
    two standard errors of a share of so many images. Without labels, two figures of up to
    ``num_images`` training images: RankMe, which falls when features collapse, and how many of an
    image's nearest neighbours are still those of the start. They cannot tell whether features get
    better; they do tell when what the checkpoint knew is lost.

    The start travels in the checkpoints, so that a resumed run is compared with the same.

    Args:
        stop_if_worse: Whether to end the run, with an error, instead of warning.
        num_images: Images to look at where there are no labels.
        num_neighbors: Neighbours of an image to look at where there are no labels.
        min_rank_me: Share of the start's RankMe below which it is worse.
        min_kept: Share of neighbours kept below which it is worse.

    Raises:
        ValueError: If a share is not in [0, 1], or ``num_images`` are not more than
            ``num_neighbors``.
    """

    priority = 'LOWEST'  # a run that is stopped has saved its epoch

    def __init__(
        self,
        stop_if_worse: bool = False,
        num_images: int = 2000,
        num_neighbors: int = 10,
        min_rank_me: float = 0.7,
        min_kept: float = 0.2,
    ) -> None:
        for name, value in (('min_rank_me', min_rank_me), ('min_kept', min_kept)):
            if not 0 <= value <= 1:
                raise ValueError(f'guard.{name}={value} is a share and must be in [0, 1].')
        if not 0 < num_neighbors < num_images:
            raise ValueError(
                f'guard.num_neighbors={num_neighbors} must be at least 1 and below '
                f'num_images={num_images}.'
            )
        self.stop_if_worse = stop_if_worse
        self.num_images = num_images
        self.num_neighbors = num_neighbors
        self.min_rank_me = min_rank_me
        self.min_kept = min_kept
        self.start: dict[str, Any] | None = None  # figures before the first step
        self._loaded: dict[str, Any] | None = None
        self._loader: DataLoader | None = None

    def before_train(self, runner: Runner) -> None:
        """Evaluate before the first step; a resumed run has done so.

        Raises:
            ValueError: If the run has no evaluation.
        """
        loaded, self._loaded = self._loaded, None
        if runner.val_loop is None:
            raise ValueError(
                'default_hooks.guard compares evaluations, and the run has none: keep '
                'val_dataloader, val_cfg and val_evaluator.'
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
            if KNN not in runner.val_loop.run():  # otherwise after_val_epoch has had it
                self._judge(runner, self._look(runner), 0)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Judge the kNN of an evaluation."""
        if metrics and KNN in metrics:
            figures = {KNN: metrics[KNN], 'images': len(runner.val_loop.dataloader.dataset)}
            self._judge(runner, figures, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Judge features without labels, where the evaluation has none and calls no hook."""
        epoch = runner.epoch + 1
        is_due = epoch % runner.train_loop.val_interval == 0 or epoch == runner.max_epochs
        if is_due and self.start is not None and KNN not in self.start:
            with random_states_kept():
                self._judge(runner, self._look(runner), epoch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let the start travel along."""
        if self.start is not None:
            checkpoint[KEY] = self.start

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the start for :meth:`before_train`, which knows whether the run is resumed."""
        self._loaded = checkpoint.get(KEY)

    def _point_out_random_weights(self, runner: Runner) -> None:
        backbone = unwrap_model(runner.model).backbone
        if not find_pretrained(backbone.init_cfg) and not runner._load_from:
            runner.logger.warning(
                'continue guard: the run starts from random weights, at a rate meant for trained '
                'ones. Name the checkpoint to continue from: --init FILE.'
            )

    def _look(self, runner: Runner) -> dict[str, Any]:
        """Compute what needs no labels, of images spread evenly over the data set."""
        if self._loader is None:
            whole = runner.val_loop.dataloader
            step = math.ceil(len(whole.dataset) / self.num_images)
            images = Subset(whole.dataset, range(0, len(whole.dataset), step))
            self._loader = DataLoader(
                images,
                whole.batch_size,
                sampler=DefaultSampler(images, shuffle=False),
                num_workers=whole.num_workers,
                collate_fn=whole.collate_fn,
            )
        features = extract_features(runner.model, self._loader, title='continue guard').features
        k = min(self.num_neighbors, len(features) - 1)
        return {'rank_me': rank_me(features), 'neighbors': nearest_others(features, k)}

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
        figures = {'guard/rank_me': now['rank_me'], 'guard/neighbors_kept': kept}
        runner.visualizer.add_scalars(figures, step=epoch)
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
