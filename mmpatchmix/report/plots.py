"""The plots of a report: which scalars share axes, colours and line styles. Bokeh draws them."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain, product
from typing import Any

from mmpatchmix.report.run_record import RunRecord

# Title, pattern of names, unit, note. A scalar goes to the first plot whose pattern matches its
# name, otherwise to a plot of its own.
EVALUATION = (
    ('Top-1 accuracy', r'.*top1', '%', 'On held-out images.'),
    ('Dimensions of held-out features', r'geometry/(rank_me|lidar)', 'dimensions', '1: collapse.'),
    ('Average precision', r'coco/\w+_mAP', '', ''),
    ('Average precision by overlap and size', r'coco/\w+_mAP_\w+', '', '-1: no such object.'),
    ('Average precision by class', r'coco/.+_precision', '', ''),
)
TRAINING = (
    ('Losses', r'loss(_\w+)?', 'nats', 'They stay well above 0: soft targets have entropy.'),
    ('Distance from the least loss', 'kl', 'nats', 'Loss minus entropy of its targets; falls.'),
    ('Accuracy of the contrast', r'acc_\w+', 'share', 'Nearest key is a target; rises.'),
    ('Online probe', r'probe/\w+', '%', 'A linear classifier trained during pre-training.'),
    ('Dimensions in use', 'health/(rank_me|lidar)', 'dimensions', 'Near 1: collapsed features.'),
    ('Similarity of pairs', r'health/\w+_similarity', 'cosine', 'Negative pairs near 1: collapse.'),
    ('Spread of features', 'health/feature_std', 'standard deviation', 'Near 0: collapse.'),
    ('Waiting for data', 'health/data_share', 'share of the step', 'High: the loader limits.'),
    ('Speed', 'health/images_per_second', 'images/s', ''),
    ('Learning rate', 'lr', '', ''),
    ('Momentum', 'momentum', 'share kept', ''),
    ('Time of an iteration', '(data_)?time', 's', 'data_time: part that waits for data.'),
    ('Memory', 'memory', 'MiB', ''),
)
LEFT_OUT = r'epoch|iter|step|base_lr|.*/top\d+_k\d+|.*/top5|eta'  # counters and duplicates

# Visible on white and on black (Wong, https://doi.org/10.1038/nmeth.1618, without the extremes).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C6BB1', '#888888')
DASHES = ('solid', 'dashed', 'dotted', 'dotdash')

MAX_POINTS = 1000  # per curve, over all runs of a report


def plan_plots(runs: Sequence[RunRecord], run_names: Sequence[str]) -> list[dict[str, Any]]:
    """Sort the scalars of some runs into plots, as the page's template and script read them.

    A plot has ``title``, ``unit``, ``note``, ``is_evaluation`` and ``series``; each of these has
    ``label``, ``colour``, ``dash``, ``x`` (epochs, or iterations if a run counts no epochs) and
    ``y`` (None for NaN and infinity).
    """
    plots = []
    for is_evaluation, rules in ((True, EVALUATION), (False, TRAINING)):
        records = [run.validation if is_evaluation else run.training for run in runs]
        names = _plotted_names(chain(*records), is_evaluation)
        titles = {n: next((r[0] for r in rules if re.fullmatch(r[1], n)), n) for n in names}
        notes = {title: (unit, note) for title, _, unit, note in rules}
        for title in sorted(set(titles.values()), key=[*notes, *names].index):
            unit, note = notes.get(title, ('', ''))
            plot = dict(title=title, unit=unit, note=note, is_evaluation=is_evaluation, series=[])
            shown = [name for name in names if titles[name] == title]
            for number, index in product(range(len(runs)), range(len(shown))):
                x, y = _read_curve(runs[number], records[number], shown[index], len(runs))
                label, colour, dash = shown[index], index, 0
                if len(runs) > 1:
                    label, colour, dash = run_names[number], number, index
                    label += f': {shown[index]}' if len(shown) > 1 else ''
                colour, dash = COLOURS[colour % len(COLOURS)], DASHES[dash % len(DASHES)]
                if x:
                    plot['series'].append(dict(label=label, colour=colour, dash=dash, x=x, y=y))
            plots.append(plot)
    return plots


def _read_curve(
    run: RunRecord, records: Sequence[dict], name: str, num_runs: int
) -> tuple[list[float], list[float | None]]:
    """Return x and y of a scalar."""
    key, scale = ('step', 1) if records is run.validation else ('iter', run.epochs_per_iter or 1)
    points = [(record[key] * scale, record[name]) for record in records if name in record]
    points = thin(points, max(20, MAX_POINTS // num_runs))
    finite = [y if math.isfinite(y) else None for _, y in points]
    return [round(x, 6) for x, _ in points], finite


def thin(points: Sequence, most: int) -> list:
    """Return every n-th point, counted from the last, at most ``most``."""
    step = -(-len(points) // max(most, 1)) or 1
    return list(points[::-1][::step][::-1])


def _plotted_names(records: Iterable[dict], is_evaluation: bool) -> list[str]:
    """Return the names of plotted numbers in some records, in the order of appearance."""
    left_out = LEFT_OUT + ('|(data_)?time' if is_evaluation else '')
    items = [item for record in records for item in record.items()]
    names = dict.fromkeys(name for name, value in items if isinstance(value, int | float))
    return [name for name in names if not re.fullmatch(left_out, name)]
