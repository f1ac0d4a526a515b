"""The report of a run: pictures, kNN before and after, and where everything is."""

import re
from collections.abc import Callable
from pathlib import Path

from mmengine.dataset import default_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.engine.choose_checkpoint import find_start
from mmpatchmix.engine.random_states import random_states_kept
from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import HOOKS
from mmpatchmix.visualization.curves import draw_curves
from mmpatchmix.visualization.mixed_figure import draw_mixed, to_picture


@HOOKS.register_module()
class RunReportHook(Hook):
    """Write ``mixed.png`` and ``curves.png`` and close a run with a summary.

    ``mixed.png`` appears before the first iteration, so that a wrong crop or colour order is
    seen at once; ``curves.png`` is drawn anew after every evaluation. Random states are
    restored: a run with this hook is the same run as without. A figure that cannot be drawn
    gives a warning and ends no run.

    Args:
        evaluate_untrained: Evaluate before the first iteration too. That costs
            one evaluation, which at ImageNet size is minutes.
        num_images: Images in ``mixed.png``, at least 2.
    """

    priority = 'VERY_LOW'

    def __init__(self, evaluate_untrained: bool = False, num_images: int = 6) -> None:
        if num_images < 2:
            raise ValueError(f'report.num_images={num_images} must be at least 2.')
        self.evaluate_untrained = evaluate_untrained
        self.num_images = num_images
        self.metrics: list[tuple[int, dict]] = []  # (epoch, metrics)
        self.beginning = 'untrained'  # what the network is at epoch 0

    def before_train(self, runner) -> None:
        """Draw a mix and evaluate the encoder as it is."""
        if find_start(runner) is not None:
            self.beginning = 'before continuing'
        self.draw(runner, 'mixed.png', self.draw_mix, runner)
        if self.evaluate_untrained and runner.iter == 0 and runner.val_loop is not None:
            with random_states_kept():
                runner.val_loop.run()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Remember the metrics and redraw the curves."""
        self.metrics.append((runner.epoch, dict(metrics or {})))
        self.draw(runner, 'curves.png', draw_curves, runner.work_dir)

    @master_only
    def after_train(self, runner) -> None:
        """Draw the curves and print the summary."""
        self.draw(runner, 'curves.png', draw_curves, runner.work_dir)
        runner.logger.info('\n' + '\n'.join(self.summary(runner)))

    @master_only
    def draw(self, runner, name: str, function: Callable, source) -> None:
        """Draw one figure, or warn why not.

        Args:
            runner: Of the run.
            name: File in the work dir.
            function: Draws ``source`` into the path that it gets as second argument.
            source: What to draw.
        """
        try:
            function(source, Path(runner.work_dir) / name)
        except Exception as error:  # a full disk, a wrong image: training goes on
            runner.logger.warning(f'{name} was not drawn: {type(error).__name__}: {error}')

    def draw_mix(self, runner, path: Path) -> None:
        """Mix a few training images as in training and draw them into a PNG file."""
        model = unwrap_model(runner.model)
        preprocessor = model.data_preprocessor
        dataset = runner.train_dataloader.dataset
        with random_states_kept():
            size = min(self.num_images, len(dataset))
            step = len(dataset) // size
            batch = default_collate([dataset[index * step] for index in range(size)])
            inputs = preprocessor(batch, training=True)['inputs']
        if 'mixed_view_1' not in inputs:
            return
        mean, std = preprocessor.mean.cpu(), preprocessor.std.cpu()
        draw_mixed(
            to_picture(inputs['view_1'].cpu(), mean, std),
            to_picture(inputs['mixed_view_1'].cpu(), mean, std),
            inputs['groups']['view_1'] if 'groups' in inputs else None,
            preprocessor.patch_size,
            path,
        )

    def summary(self, runner) -> list[str]:
        """Return the lines of the closing summary: kNN before and after, and files."""
        lines = ['', *self.summarise_metrics()]
        unreadable = getattr(runner.train_dataloader.dataset, 'num_unreadable', 0)
        if unreadable:
            lines += ['', f'{unreadable} unreadable images were skipped; the log names them']
        work_dir = Path(runner.work_dir)
        files = {
            'checkpoint': find_good_checkpoint(runner.work_dir)[0],
            'log': Path(runner.log_dir) / f'{runner.timestamp}.log',
            'TensorBoard': next(Path(runner.log_dir).glob('vis_data/events.*'), None),
            'a mix': work_dir / 'mixed.png',
            'curves': work_dir / 'curves.png',
        }
        lines += ['', 'Written']
        lines += [
            f'  {name:<12}{path}' for name, path in files.items() if path and Path(path).exists()
        ]
        return lines

    def summarise_metrics(self) -> list[str]:
        """Return a table of kNN before, after and on raw pixels; a column per set of queries."""
        measured = [(epoch, m) for epoch, m in self.metrics if 'knn/top1' in m]
        if not measured:
            return self.summarise_geometry()
        last = measured[-1][1]
        sets = [name[3:-5] for name in last if re.fullmatch(r'knn(_\w+)?/top1', name)]
        lines = ['kNN top-1 on held-out images (no label was used in training)']
        if len(sets) > 1:
            titles = [name.removeprefix('_') or 'as they are' for name in sets]
            lines.append(' ' * 20 + ''.join(f'{title:>13}' for title in titles))
        rows = [(self.name_epoch(epoch), 'knn', m) for epoch, m in measured[:1] + measured[1:][-1:]]
        if 'pixels/top1' in last:
            rows.append(('raw pixels', 'pixels', last))
        for state, kind, metrics in rows:
            values = (metrics[f'{kind}{name}/top1'] for name in sets)
            width = 11 if len(sets) > 1 else 6
            row = f'  {state:<18}' + ''.join(f'{value:{width}.2f} %' for value in values)
            lines.append(row + ('  (no network at all)' if kind == 'pixels' else ''))
        return lines

    def summarise_geometry(self) -> list[str]:
        """Return RankMe before and after, where no kNN was measured."""
        measured = [(epoch, m) for epoch, m in self.metrics if 'geometry/rank_me' in m]
        rows = [
            f'  {self.name_epoch(epoch):<18}{m["geometry/rank_me"]:6.1f}'
            for epoch, m in measured[:1] + measured[1:][-1:]
        ]
        return ['RankMe, how many directions the features use', *rows] if rows else []

    def name_epoch(self, epoch: int) -> str:
        """Return what the network was when it was evaluated."""
        return f'after {epoch} epoch{"" if epoch == 1 else "s"}' if epoch else self.beginning
