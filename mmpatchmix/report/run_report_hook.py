"""The hook that writes pictures, ``report.html`` and the summary of a run."""

import re
from collections.abc import Callable
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.engine.distributed import PatchMixFSDP
from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.engine.schedules import find_start
from mmpatchmix.models import PatchMix
from mmpatchmix.models.compiling import unwrap_model
from mmpatchmix.registry import HOOKS
from mmpatchmix.report.detection_figure import is_detection
from mmpatchmix.report.pictures import PICTURES, draw_pictures
from mmpatchmix.report.report import format_table, write_report
from mmpatchmix.report.run_record import write_end, write_start
from mmpatchmix.report.sheets import draw_mix, save_picture, to_array

REPEATED = ('neighbours', 'attention')  # pictures drawn after every evaluation


@HOOKS.register_module()
class RunReportHook(Hook):
    """Write pictures and ``report.html``, and log a summary at the end of a run.

    ``mixed.png`` is written before the first iteration. After every evaluation ``report.html`` is
    written and two pictures go to the visualizer (TensorBoard, ``vis_data/vis_image``), the others
    at the end. Random states are restored, so that the run is the same without this hook. Errors in
    drawing and writing become warnings.

    Args:
        evaluate_untrained: Evaluate before the first iteration too, at the cost of one evaluation.
        num_images: Images in ``mixed.png``, at least 2.
        pictures: Whether to draw pictures of up to 400 held-out images, which takes seconds. None
            are drawn of a model sharded by FSDP.
    """

    priority = 'VERY_LOW'

    def __init__(
        self, evaluate_untrained: bool = False, num_images: int = 6, pictures: bool = True
    ) -> None:
        if num_images < 2:
            raise ValueError(f'report.num_images={num_images} must be at least 2.')
        self.evaluate_untrained, self.num_images = evaluate_untrained, num_images
        self.pictures = pictures
        self.unit = 'epoch'  # of steps, or 'iteration' if the run counts no epochs
        self.metrics: list[tuple[int, dict]] = []  # (step, metrics)
        self.drawn: tuple[int, tuple[str, ...]] = (-1, ())  # step and its pictures
        self.described: dict[str, str] = {}  # facts of the verb, for the report
        self.beginning = 'untrained'  # name of the network at epoch 0

    def before_train(self, runner: Runner) -> None:
        """Write ``run.json`` and ``mixed.png``, and evaluate the untrained network if asked to."""
        self.unit = 'iteration' if isinstance(runner.train_loop, IterBasedTrainLoop) else 'epoch'
        if find_start(runner) is not None:
            self.beginning = 'before continuing'
        self._attempt(runner, 'run.json', write_start, runner, self.described)
        if isinstance(unwrap_model(runner.model), PatchMix):
            self._attempt(runner, 'mixed.png', self._save_mix, runner)
        if self.evaluate_untrained and runner.iter == 0 and runner.val_loop is not None:
            with random_states_kept():
                runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Store the metrics, draw the repeated pictures, and write the report."""
        self.metrics.append((runner.epoch or runner.iter, dict(metrics or {})))
        self._attempt(runner, 'pictures', self._show_pictures, runner, REPEATED)
        self._write_page(runner)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the missing pictures, write the report and log the summary."""
        self._attempt(runner, 'pictures', self._show_pictures, runner, PICTURES)
        self._attempt(runner, 'run.json', write_end, runner)
        self._write_page(runner)
        runner.logger.info('\n' + '\n'.join(self.summary(runner)))

    def _write_page(self, runner: Runner) -> None:
        page = Path(runner.work_dir) / 'report.html'
        self._attempt(runner, 'report.html', write_report, [runner.work_dir], page)

    @master_only
    def _attempt(self, runner: Runner, name: str, function: Callable, *args) -> None:
        """Call a function; its error becomes a warning, so that a full disk ends no run."""
        try:
            function(*args)
        except Exception as error:
            runner.logger.warning(f'{name} was not written: {type(error).__name__}: {error}')

    def _save_mix(self, runner: Runner) -> None:
        save_picture(draw_mix(runner, self.num_images), Path(runner.work_dir) / 'mixed.png')

    def _show_pictures(self, runner: Runner, names: tuple[str, ...]) -> None:
        """Send pictures to the visualizer that were not drawn in this epoch."""
        # A single rank cannot compute with sharded weights.
        if not self.pictures or isinstance(runner.model, PatchMixFSDP) or runner.val_loop is None:
            return
        detects = is_detection(runner)
        if detects and names == REPEATED:
            return  # a detector's picture is drawn once, at the end
        if not detects and not isinstance(unwrap_model(runner.model), PatchMix):
            return
        step = runner.epoch or runner.iter
        last, drawn = self.drawn
        missing = tuple(name for name in names if last != step or name not in drawn)
        for name, figure in draw_pictures(runner, missing):
            runner.visualizer.add_image(name, to_array(figure), step)
        self.drawn = step, names

    def summary(self, runner: Runner) -> list[str]:
        """Return the lines of the summary: metrics before and after training, and files."""
        lines = ['', *self.summarise_metrics()]
        unreadable = getattr(runner.train_dataloader.dataset, 'num_unreadable', 0)
        if unreadable:
            lines += ['', f'{unreadable} unreadable images were skipped; the log names them']
        work_dir, log_dir = Path(runner.work_dir), Path(runner.log_dir)
        files = {
            'checkpoint': find_good_checkpoint(work_dir)[0],
            'log': log_dir / f'{runner.timestamp}.log',
            'TensorBoard': next(log_dir.glob('vis_data/events.*'), None),
            'a mix': work_dir / 'mixed.png',
            'report': work_dir / 'report.html',
        }
        written = [f'  {n:<12}{path}' for n, path in files.items() if path and Path(path).exists()]
        return [*lines, '', 'Written', *written]

    def summarise_metrics(self) -> list[str]:
        """Return a table of kNN, or RankMe without labels, before and after training.

        kNN has a column per set of queries, and a row for raw pixels if they were evaluated.
        """
        rank_me = 'geometry/rank_me'
        measured = [(step, m) for step, m in self.metrics if 'knn/top1' in m or rank_me in m]
        if not measured:
            return []
        last = measured[-1][1]
        names = [name for name in last if re.fullmatch(r'knn(_\w+)?/top1', name)]
        title, unit = 'kNN top-1 on held-out images (no label was used in training)', ' %'
        if not names:
            title, unit, names = 'RankMe, the number of dimensions in use', '', [rank_me]
        rows = []
        for step, metrics in measured[:1] + measured[1:][-1:]:
            state = f'after {step} {self.unit}{"s" * (step != 1)}' if step else self.beginning
            rows.append([state, *(f'{metrics[name]:.2f}{unit}' for name in names)])
        if 'pixels/top1' in last:
            values = [last[name.replace('knn', 'pixels')] for name in names]
            rows.append(['raw pixels', *(f'{v:.2f} %' for v in values), '(no network at all)'])
        columns = [name[4:-5] or 'as they are' for name in names if len(names) > 1]
        return [title, *(f'  {line}' for line in format_table(['', *columns], rows).splitlines())]
