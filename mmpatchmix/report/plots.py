"""Which curves a report has; its page draws them, by bokeh's library for browsers."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmpatchmix.report.run_record import RunRecord

# (title, names, unit, what to look for). The first that fits takes a scalar; a scalar that none
# fits gets a plot of its own.
TRAINING = (
    ('Losses', r'loss(_\w+)?', 'nats', 'They stay well above 0 by design: targets are shared.'),
    (
        'Distance from the least loss',
        'kl',
        'nats',
        'How far the loss is above the entropy of its targets. It should fall.',
    ),
    (
        'Accuracy of the contrast',
        r'acc_\w+',
        'share',
        'Share of queries whose nearest key is one of their own. It should rise.',
    ),
    ('Online probe', r'probe/\w+', '%', 'A linear classifier that is trained beside.'),
    ('Dimensions in use', 'health/(rank_me|lidar)', 'dimensions', 'Near 1: collapsed features.'),
    ('Similarity of pairs', r'health/\w+_similarity', 'cosine', 'Negative pairs near 1: collapse.'),
    ('Spread of features', 'health/feature_std', 'standard deviation', 'Near 0: collapse.'),
    ('Waiting for data', 'health/data_share', 'share of the step', 'High: the loader limits.'),
    ('Speed', 'health/images_per_second', 'images/s', ''),
    ('Learning rate', 'lr', '', ''),
    ('Momentum', 'momentum', 'share kept', ''),
    ('Time of an iteration', '(data_)?time', 's', 'data_time is the part that waits for data.'),
    ('Memory', 'memory', 'MiB', ''),
)

EVALUATION = (
    ('Top-1 accuracy', r'.*top1', '%', 'On held-out images.'),
    (
        'Dimensions of held-out features',
        r'geometry/(rank_me|lidar)',
        'dimensions',
        'Near 1: collapsed features.',
    ),
    ('Average precision', r'coco/\w+_mAP', '', ''),
    ('Average precision by overlap and size', r'coco/\w+_mAP_\w+', '', '-1: no such object.'),
    ('Average precision by class', r'coco/.+_precision', '', ''),
)

# Counters, and what another scalar says already.
LEFT_OUT = r'epoch|iter|step|base_lr|.*/top\d+_k\d+|.*/top5|eta'

# Visible on white and on black (Wong, https://doi.org/10.1038/nmeth.1618, without the extremes).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C6BB1', '#888888')

DASHES = ('solid', 'dashed', 'dotted', 'dotdash')

MAX_POINTS = 1000  # of a curve, in a report of one run


@dataclass
class Series:
    """One curve.

    Attributes:
        run: Which run it is of, by number.
        name: Of the scalar, as in the log.
        x: Epochs, or iterations where epochs are not counted.
        y: The values of the log; None for those that are not finite.
        label: What it is called beside the plot.
        colour: One for each name, or of several runs one for each run.
        dash: As bokeh names it.
    """

    run: int
    name: str
    x: list[float]
    y: list[float | None]
    label: str = ''
    colour: str = COLOURS[0]
    dash: str = DASHES[0]


@dataclass
class Plot:
    """Curves that share their axes."""

    title: str
    unit: str
    note: str
    is_evaluation: bool = False
    series: list[Series] = field(default_factory=list)


def plan_plots(runs: Sequence[RunRecord], run_names: Sequence[str]) -> list[Plot]:
    """Sort the scalars of some runs into plots."""
    plots: dict[str, Plot] = {}
    for rules, is_evaluation in ((EVALUATION, True), (TRAINING, False)):
        for number, run in enumerate(runs):
            records = run.validation if is_evaluation else run.training
            scale = 1 if is_evaluation else run.epochs_per_iter or 1
            counter = 'step' if is_evaluation else 'iter'
            for name in _names(records, is_evaluation):
                title, unit, note = _find_rule(name, rules)
                plot = plots.setdefault(title, Plot(title, unit, note, is_evaluation))
                points = [(r[counter] * scale, r[name]) for r in records if name in r]
                points = thin(points, max(20, MAX_POINTS // len(runs)))
                x = [round(x, 6) for x, _ in points]
                y = [y if math.isfinite(y) else None for _, y in points]
                plot.series.append(Series(number, name, x, y))
    for plot in plots.values():
        _style(plot, run_names)
    order = [rule[0] for rule in (*EVALUATION, *TRAINING)]
    return sorted(
        plots.values(), key=lambda p: order.index(p.title) if p.title in order else len(order)
    )


def _style(plot: Plot, run_names: Sequence[str]) -> None:
    names = list(dict.fromkeys(series.name for series in plot.series))
    for series in plot.series:
        colour, dash, series.label = names.index(series.name), 0, series.name
        if len(run_names) > 1:
            colour, dash, series.label = series.run, colour, run_names[series.run]
            series.label += f': {series.name}' if len(names) > 1 else ''
        series.colour = COLOURS[colour % len(COLOURS)]
        series.dash = DASHES[dash % len(DASHES)]


def thin(points: Sequence, most: int) -> list:
    """Take every n-th point, counted from the last, so that at most so many are left."""
    step = -(-len(points) // max(most, 1)) or 1
    return list(points[::-1][::step][::-1])


def _names(records: Sequence[dict], is_evaluation: bool) -> list[str]:
    """Return the names of numbers in some records, in the order of their appearance."""
    left_out = LEFT_OUT + ('|(data_)?time' if is_evaluation else '')
    names = {
        name: None
        for record in records
        for name, value in record.items()
        if isinstance(value, int | float) and not re.fullmatch(left_out, name)
    }
    return list(names)


def _find_rule(name: str, rules: Sequence[tuple]) -> tuple[str, str, str]:
    for title, pattern, unit, note in rules:
        if re.fullmatch(pattern, name):
            return title, unit, note
    return name, '', ''
