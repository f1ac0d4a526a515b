"""Loss, schedule and kNN curves from what the Runner has logged."""

import json
import re
from pathlib import Path

from matplotlib.figure import Figure


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read the scalars of a run, also of one that was resumed several times.

    Args:
        work_dir: Folder that mmengine wrote ``*/vis_data/scalars.json`` into.

    Returns:
        Training records with ``iter`` and ``epoch``, and validation records with ``step`` (an
        epoch), each in order. Where a resumed run repeated a step, its later record counts.
    """
    training, validation = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a run that was killed while writing it
                continue
            if 'loss' in record:
                training[record['iter']] = record
            elif any('/' in name for name in record):
                # Several writers: the loop, the guard.
                validation[record['step']] = validation.get(record['step'], {}) | record
    return (
        [training[step] for step in sorted(training)],
        [validation[step] for step in sorted(validation)],
    )


def draw_curves(work_dir: str | Path, path: str | Path) -> bool:
    """Draw losses, accuracy of the contrast, kNN (or RankMe) and schedules over epochs.

    Args:
        work_dir: As in :func:`read_scalars`.
        path: PNG file to write; its folder must exist.

    Returns:
        False, and no file, if nothing has been logged yet.
    """
    training, validation = read_scalars(work_dir)
    if not training:
        return False
    last = training[-1]
    epochs_per_iter = last['epoch'] / last['iter']
    epoch = [record['iter'] * epochs_per_iter for record in training]
    names = validation[-1] if validation else ()
    knn = [name for name in names if re.fullmatch(r'(knn|pixels)(_\w+)?/top1', name)]

    figure = Figure(figsize=(11, 6.5), layout='constrained', dpi=110)
    (losses, contrast), (accuracy, schedule) = figure.subplots(2, 2)
    for name in [key for key in last if key.startswith('loss_')]:
        losses.plot(epoch, [record.get(name) for record in training], label=name)
    losses.set(title='losses', ylabel='nats')
    for name in [key for key in last if key.startswith('acc_')]:
        contrast.plot(epoch, [100 * record.get(name, 0) for record in training], label=name)
    contrast.set(title='queries whose nearest key is theirs', ylabel='%')
    for name in knn or [name for name in names if name == 'geometry/rank_me']:
        steps = [record['step'] for record in validation if name in record]
        values = [record[name] for record in validation if name in record]
        accuracy.plot(steps, values, marker='o', label=name)
    if knn:
        accuracy.set(title='kNN on held-out images', ylabel='%')
    else:
        accuracy.set(title='directions in use (no labels)')
    for name in ('lr', 'momentum'):
        values = [record.get(name) for record in training]
        if None in values:
            continue
        axis = schedule if name == 'lr' else schedule.twinx()
        colour = 'C0' if name == 'lr' else 'C1'
        axis.plot(epoch, values, color=colour)
        axis.set_ylabel('learning rate' if name == 'lr' else 'momentum (share kept)', color=colour)
    schedule.set(title='schedules')
    for axis in (losses, contrast, accuracy, schedule):
        axis.set_xlabel('epoch')
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    figure.savefig(path)
    return True
