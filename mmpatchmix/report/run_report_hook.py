"""What a run shows of itself: pictures, report.html, and a summary at its end."""

import re
from collections.abc import Callable
from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.engine.checkpoint_hook import find_start
from mmpatchmix.engine.distributed import PatchMixFSDP
from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS
from mmpatchmix.report.detection_figure import is_detection
from mmpatchmix.report.pictures import PICTURES, draw_mix, draw_pictures
from mmpatchmix.report.report import write_report
from mmpatchmix.report.run_record import write_end, write_start
from mmpatchmix.report.sheets import save_picture, to_array

# Drawn after every evaluation, so that they are seen to change.
REPEATED = ('neighbours', 'attention')


@HOOKS.register_module()
class RunReportHook(Hook):
    """Write pictures and ``report.html`` and close a run with a summary.

    ``mixed.png`` appears before the first iteration, so that a wrong crop or colour order is
    seen at once. After every evaluation the nearest neighbours and the attention of some images
    go to the visualizer (TensorBoard, ``vis_data/vis_image``), at the end the other pictures,
    too; ``report.html`` is written anew each time. Random states are restored: a run with this
    hook is the same run as without. What cannot be drawn or written gives a warning and ends no
    run.

    Args:
        evaluate_untrained: Evaluate before the first iteration too. That costs
            one evaluation, which at ImageNet size is minutes.
        num_images: Images in ``mixed.png``, at least 2.
        pictures: Whether to draw pictures of what the model makes of up to 400 held-out images,
            which takes seconds. With weights that are shared among the ranks none are drawn.
    """

    priority = 'VERY_LOW'

    def __init__(
        self, evaluate_untrained: bool = False, num_images: int = 6, pictures: bool = True
    ) -> None:
        if num_images < 2:
            raise ValueError(f'report.num_images={num_images} must be at least 2.')
        self.evaluate_untrained = evaluate_untrained
        self.num_images = num_images
        self.pictures = pictures
        self.metrics: list[tuple[int, dict]] = []  # (epoch, metrics)
        self.drawn: tuple[int, tuple[str, ...]] = (-1, ())  # epoch, and pictures drawn then
        self.beginning = 'untrained'  # what the network is at epoch 0
        self.described: dict[str, str] = {}  # facts that the verb found, for the report

    def before_train(self, runner: Runner) -> None:
        """Write down what starts, draw a mix, and evaluate the encoder as it is."""
        if find_start(runner) is not None:
            self.beginning = 'before continuing'
        self.attempt(runner, 'the start of the run', write_start, runner, self.described)
        if isinstance(unwrap_model(runner.model), PatchMix):
            self.attempt(runner, 'mixed.png', self.save_mix, runner)
        if self.evaluate_untrained and runner.iter == 0 and runner.val_loop is not None:
            with random_states_kept():
                runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remember the metrics, draw what is drawn each time, and write the report."""
        self.metrics.append((runner.epoch, dict(metrics or {})))
        self.attempt(runner, 'pictures', self.show_pictures, runner, REPEATED)
        self.attempt(runner, 'report.html', self.write, runner)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw what is missing, write the report and print the summary."""
        self.attempt(runner, 'pictures', self.show_pictures, runner, tuple(PICTURES))
        self.attempt(runner, 'the end of the run', write_end, runner)
        self.attempt(runner, 'report.html', self.write, runner)
        runner.logger.info('\n' + '\n'.join(self.summary(runner)))

    @master_only
    def attempt(self, runner: Runner, name: str, function: Callable, *args) -> None:
        """Call a function with arguments, or warn that ``name`` was not written."""
        try:
            function(*args)
        except Exception as error:  # a full disk, a wrong image: training goes on
            runner.logger.warning(f'{name} was not written: {type(error).__name__}: {error}')

    def save_mix(self, runner: Runner) -> None:
        """Mix a few training images as in training and draw them into ``mixed.png``."""
        save_picture(draw_mix(runner, self.num_images), Path(runner.work_dir) / 'mixed.png')

    def show_pictures(self, runner: Runner, names: tuple[str, ...]) -> None:
        """Give pictures of held-out images to the visualizer, each once in an epoch."""
        # One rank alone cannot compute with weights that are shared among all.
        if not self.pictures or isinstance(runner.model, PatchMixFSDP):
            return
        if runner.val_loop is None:
            return
        detects = is_detection(runner)
        if not detects and not isinstance(unwrap_model(runner.model), PatchMix):
            return
        if detects and names == REPEATED:
            return  # once, at the end
        epoch, drawn = self.drawn
        missing = tuple(name for name in names if epoch != runner.epoch or name not in drawn)
        for name, figure in draw_pictures(runner, missing):
            runner.visualizer.add_image(name, to_array(figure), runner.epoch)
        self.drawn = runner.epoch, names

    @staticmethod
    def write(runner: Runner) -> None:
        """Write ``report.html`` into the work dir."""
        write_report([runner.work_dir], Path(runner.work_dir) / 'report.html')

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
            'report': work_dir / 'report.html',
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
