"""Pre-train on digits without any augmentation, once with mixing and once without, side by side.

    python examples/demo.py
    python examples/demo.py --epochs 100

Both runs have the same network, batches and seed; each takes one thread of a process of its own.
"""

import argparse
import logging
import multiprocessing
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import rich
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmpatchmix import pretrain
from mmpatchmix.cli.verb import exit_on_user_error

RECIPE = 'patchmix_vit-digits_plain'
MIXING, PLAIN = RUNS = ('with mixing', 'without mixing')  # the latter is MoCo v3
KNN = 'knn/top1'
COLUMNS = {KNN: 'as they are', 'knn_changed/top1': 'moved, resized, turned'}
EVENTS = multiprocessing.get_context('fork').SimpleQueue()  # of the runs, for the console


@HOOKS.register_module()
class SendEvents(Hook):
    """Send recipe, progress and evaluations to the process of the console; log to files only."""

    def __init__(self, run: str) -> None:
        self.run = run
        for handler in MMLogger.get_current_instance().handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.emit = self.send_recipe

    def send_recipe(self, record: logging.LogRecord) -> None:
        """Send the record that describes the run."""
        if str(record.msg).startswith(RECIPE):
            EVENTS.put((self.run, 'recipe', record.msg))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Send the share that is done."""
        EVENTS.put((self.run, 'done', (runner.iter + 1) / runner.max_iters))

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Send the epoch and its metrics."""
        EVENTS.put((self.run, 'metrics', (runner.epoch, metrics)))


def train(run: str, work_dir: Path, epochs: int | None) -> None:
    """Train one run on one thread; what it prints goes to a file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = open(work_dir / 'console.txt', 'w', buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    changes: dict = {'custom_hooks': [dict(type='SendEvents', run=run)]}
    if run == PLAIN:
        changes['model.data_preprocessor.num_mix'] = 1
    pretrain(recipe=RECIPE, work_dir=work_dir, epochs=epochs, overwrite=True, cfg_options=changes)


def follow(processes: list[ForkProcess]) -> dict[str, dict[int, dict[str, float]]]:
    """Print recipe, progress and evaluations until both runs end; return metrics by epoch."""
    found: dict[str, dict[int, dict]] = {run: {} for run in RUNS}
    plain = dict(highlight=False, soft_wrap=True)
    percentage = TextColumn('{task.percentage:>3.0f} %  ETA')
    with Progress('{task.description:<15}', BarColumn(), percentage, TimeRemainingColumn()) as bars:
        tasks = {run: bars.add_task(run, total=1.0) for run in RUNS}
        while any(process.is_alive() for process in processes) or not EVENTS.empty():
            if EVENTS.empty():
                time.sleep(0.05)
                continue
            run, kind, content = EVENTS.get()
            if kind == 'recipe' and run == MIXING:
                bars.print('\n'.join(line[:100] for line in content.splitlines()), **plain)
            elif kind == 'done':
                bars.update(tasks[run], completed=content)
            elif kind == 'metrics':
                epoch, found[run][epoch] = content
                if all(epoch in each for each in found.values()):
                    texts = [f'{run} {found[run][epoch][KNN]:.1f} %' for run in RUNS]
                    bars.print(f'epoch {epoch:>3}   kNN {"   ".join(texts)}', **plain)
    return found


def make_table(found: dict[str, dict[int, dict[str, float]]]) -> tuple[float, Table]:
    """Return the gap, and the table: both runs, the untrained network, and raw pixels."""
    rows = {run: metrics[max(metrics)] for run, metrics in found.items()}
    gap = rows[MIXING][KNN] - rows[PLAIN][KNN]
    pixels = {key: rows[MIXING][key.replace('knn', 'pixels')] for key in COLUMNS}
    rows |= {'untrained network': found[MIXING][0], 'raw pixels, no network': pixels}
    table = Table('kNN top-1 on 360 held-out digits', *COLUMNS.values(), box=None, pad_edge=False)
    for name, row in rows.items():
        table.add_row(name, *(f'{row[key]:.1f} %' for key in COLUMNS))
    return gap, table


def main() -> None:
    """Train both, and print the table and the files."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument('--epochs', type=int, help='length of both runs')
    parser.add_argument('--work-dir', default='work_dirs/digits', help='of the run with mixing')
    args = parser.parse_args()
    began, fork = time.monotonic(), multiprocessing.get_context('fork')
    folders = {MIXING: Path(args.work_dir), PLAIN: Path(f'{args.work_dir}_no_mixing')}
    processes = [
        fork.Process(target=train, args=(run, folder, args.epochs))
        for run, folder in folders.items()
    ]
    for process in processes:
        process.start()
    found = follow(processes)
    for process, folder in zip(processes, folders.values(), strict=True):
        process.join()
        if process.exitcode:
            raise ValueError(f'a run failed; {folder}/console.txt has the reason.')
    gap, table = make_table(found)
    print(f'\nMixing adds {gap:.1f} points.\n')
    rich.print(table)
    print(f'\nBoth runs took {time.monotonic() - began:.0f} s. They wrote:')
    for folder in folders.values():
        checkpoint = Path((folder / 'last_checkpoint').read_text().strip()).name
        print(f'  {folder}/report.html   {folder}/{checkpoint}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
