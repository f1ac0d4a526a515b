"""The tables of docs/evidence.md, from the lines of the .jsonl files of benchmarks/results/."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from runs import read_results
from scipy.stats import ttest_rel

BASELINE = 'mocov3'
MAIN = ('mocov3', 'patchmix-2', 'patchmix-3', 'patchmix-4', 'patchmix-6')
TITLES = {
    'mocov3': 'MoCo v3 (M = 1)',
    **{f'patchmix-{m}': f'PatchMix, M = {m}' for m in (2, 3, 4, 6)},
    'patchmix-2-3-4': 'M drawn from 2, 3, 4',
    'without-source': 'M = 2 without loss_source',
    'without-mix-source': 'M = 2 without loss_mix_source',
    'without-mix-mix': 'M = 2 without loss_mix_mix',
    'mix-one-view': 'M = 2, only the queries mixed',
    **{f'mix-patch-{p}': f'M = 2, mix patch of {p} pixels' for p in (2, 8, 12)},
    'mixup': 'Mixup, same soft targets',
    'cutmix': 'CutMix, same soft targets',
    'resizemix': 'ResizeMix, same soft targets',
    'no-momentum-mocov3': 'MoCo v3, no momentum encoder',
    'no-momentum-patchmix-2': 'M = 2, no momentum encoder',
    'long-mocov3': 'MoCo v3, four times as long',
    'long-patchmix-2': 'M = 2, four times as long',
    'local-mocov3': 'MoCo v3 + 4 local crops',
    'local-patchmix-2': 'M = 2 + 4 local crops',
    'untrained': 'untrained',
}
LABELS = (1, 2, 5, 10, 20, 50, 100)
STARTS = {
    'random': 'random weights',
    'mocov3': 'MoCo v3 on unlabelled crops',
    'patchmix': 'PatchMix on unlabelled crops',
}
COUNTS = (10, 20, 50, 100, 400)
RATES = ('0.001', '0.002', '0.004')

Rows = dict[str, dict[int, dict]]  # the run of each row and seed


def read(path: Path) -> Rows:
    """Read the last line of each row and seed."""
    rows = defaultdict(dict)
    for run in read_results(path):
        rows[run['row']][run['seed']] = run
    return rows


def judged(run: dict) -> dict:
    """Return the figures of the momentum encoder, or of the query encoder where there is none."""
    return run.get('momentum', run['query'])


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Format the mean, and the standard deviation over seeds if there are several."""
    values = list(values)
    text = f'{statistics.mean(values):.{digits}f}' if values else ''
    return f'{text} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else text


def figure(name: str, digits: int = 1, of: Callable[[dict], dict] = judged) -> Callable:
    """Return a column: mean and spread of a figure over the runs of a row."""
    return lambda rows, row: spread((of(run)[name] for run in rows[row].values()), digits)


def difference(name: str, rows: Rows, row: str) -> str:
    """Return a cell: the mean difference to (``<kind>-``)MoCo v3, with a paired t-test."""
    kind = row.removesuffix('patchmix-2') + BASELINE
    runs, base = rows[row], rows.get(kind if kind in TITLES else BASELINE, {})
    seeds = set(runs) & set(base)
    if not seeds or runs is base:
        return ''
    ours, theirs = ([judged(each[seed])[name] for seed in sorted(seeds)] for each in (runs, base))
    text = f'{statistics.mean(ours) - statistics.mean(theirs):+.1f}'
    return f'{text} (p = {ttest_rel(ours, theirs).pvalue:.2g})' if len(seeds) > 1 else text


def make_table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    header = list(header)
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, ['---'] * len(header), *body])


def table(columns: list, wanted: Iterable[str], rows: Rows, corner: str = '') -> str:
    """Format a table with a line for each wanted row that has runs."""
    lines = filter(rows.get, wanted)
    body = [[TITLES[row], *(column(rows, row) for _, column in columns)] for row in lines]
    return make_table([corner, *(title for title, _ in columns)], body)


def detection_table(rows: Rows) -> str:
    """Mask AP by number of annotated scenes, and the difference to random weights."""
    body = []
    for start, title in STARTS.items():
        cells = [title]
        for num in COUNTS:
            runs, base = rows.get(f'{start}-{num}', {}), rows.get(f'random-{num}', {})
            text = spread(run['mask_ap'] for run in runs.values())
            gains = [runs[seed]['mask_ap'] - base[seed]['mask_ap'] for seed in runs if seed in base]
            if start != 'random' and gains:
                text += f' ({statistics.mean(gains):+.1f})'
            cells.append(text)
        body.append(cells)
    return make_table(['annotated scenes', *map(str, COUNTS)], body)


def tuning_table(rows: Rows) -> str:
    """Accuracy of the runs that chose rate and temperature, on held-out training images."""
    settings = {f'lr {lr}': f'tune-lr{lr}' for lr in RATES}
    settings['lr 0.002, temperature 0.1'] = 'tune-temperature0.1'
    metrics = {'kNN 20': 'knn20', 'linear': 'linear'}
    pairs = [(m, metric) for m in (1, 2) for metric in metrics.values()]
    body = []
    for title, name in settings.items():
        runs = {m: rows.get(f'{name}-m{m}', {}).values() for m in (1, 2)}
        cells = (spread(judged(run)[metric] for run in runs[m]) for m, metric in pairs)
        body.append([title, *cells])
    header = [f'{title}, {name}' for title in ('MoCo v3', 'M = 2') for name in metrics]
    return make_table(['', *header], body)


def detection_tuning_table(rows: Rows) -> str:
    """Mask AP of the runs that chose the rates, on held-out training scenes."""
    body = []
    for start, title in STARTS.items():
        runs = [rows.get(f'tune-{start}-lr{rate}', {}).values() for rate in RATES]
        body.append([title, *(spread(run['mask_ap'] for run in each) for each in runs)])
    return make_table(['', *(f'lr {rate}' for rate in RATES)], body)


def share(name: str, m: str, digits: int) -> Callable:
    """Return a column: a figure of the predicted shares of mixes of ``m`` images."""
    return figure(name, digits, of=lambda run: run['calibration'][m])


def nearest(run: dict) -> dict:
    """Return the share of neighbours of the same class, in percent."""
    return {'precision': 100 * judged(run)['agreement']['precision_at_10']}


def count_views(rows: Rows, row: str) -> str:
    """Return a cell: millions of encoded views of a run."""
    return f'{statistics.mean(run["encoded_views"] for run in rows[row].values()) / 1e6:.2f}'


SEEDS = ('seeds', lambda rows, row: str(len(rows[row])))
ACCURACY = [
    SEEDS,
    ('kNN 20', figure('knn20')),
    ('kNN 200', figure('knn200')),
    ('to MoCo v3', partial(difference, 'knn20')),
    ('linear', figure('linear')),
    ('to MoCo v3', partial(difference, 'linear')),
    ('linear, query encoder', figure('linear', of=lambda run: run['query'])),
]
SUMMARY = [
    SEEDS,
    ('kNN (k = 20)', figure('knn20')),
    ('linear', figure('linear')),
    ('error of the shares', share('error', '2', 3)),
]
GEOMETRY = [
    ('alignment', figure('alignment', 2)),
    ('uniformity', figure('uniformity', 2)),
    ('RankMe', figure('rank_me')),
    ('class AUROC', figure('auroc', 3, of=lambda run: judged(run)['agreement'])),
    ('same class of 10 nearest (%)', figure('precision', of=nearest)),
    ('views encoded (millions)', count_views),
]
SHARES = [
    (f'{name}, M = {m}', share(name, m, digits))
    for m in '234'
    for name, digits in (('error', 3), ('correlation', 2))
]
FEW_LABELS = [(str(count), figure(f'labels{count}')) for count in LABELS]
TABLES = {
    'summary': partial(table, SUMMARY, ('untrained', *MAIN)),
    'accuracy': partial(table, ACCURACY, TITLES),
    'geometry': partial(table, GEOMETRY, TITLES),
    'shares': partial(table, SHARES, ('untrained', *MAIN, 'mixup', 'cutmix', 'resizemix')),
    'labels': partial(
        table, FEW_LABELS, ('untrained', 'mocov3', 'patchmix-2'), corner='labels per class'
    ),
    'tuning': tuning_table,
    'detection': detection_table,
    'detection-tuning': detection_tuning_table,
}
