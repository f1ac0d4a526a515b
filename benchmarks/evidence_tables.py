"""The tables of docs/evidence.md, from the lines of the .jsonl files of benchmarks/results/."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

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
RATES = (1e-3, 2e-3, 4e-3)


def read(path: Path) -> dict[str, dict[int, dict]]:
    """Read the last line of each row and seed."""
    rows = defaultdict(dict)
    for line in path.read_text().splitlines() if path.is_file() else []:
        run = json.loads(line)
        rows[run['row']][run['seed']] = run
    return rows


def judged(run: dict) -> dict:
    """Return the figures of the encoder that is used: momentum where there is one."""
    return run.get('momentum', run['query'])


def mean_and_spread(values: list[float], digits: int = 1) -> str:
    """Format the mean, and the standard deviation over seeds where there are several."""
    text = f'{statistics.mean(values):.{digits}f}'
    return f'{text} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else text


def compare(rows: dict, row: str, name: str) -> str:
    """Format the mean difference to MoCo v3 over common seeds, with the paired t-test.

    A ``<kind>-patchmix-2`` is compared with the ``<kind>-mocov3`` where there is one.
    """
    kind = row.removesuffix('patchmix-2') + BASELINE
    runs, base = rows[row], rows.get(kind if kind in TITLES else BASELINE, {})
    seeds = sorted(set(runs) & set(base))
    pairs = [(judged(runs[seed])[name], judged(base[seed])[name]) for seed in seeds]
    if not pairs or runs is base:
        return ''
    difference = statistics.mean(a - b for a, b in pairs)
    if len(pairs) < 2:
        return f'{difference:+.1f}'
    return f'{difference:+.1f} (p = {ttest_rel(*zip(*pairs, strict=True)).pvalue:.2g})'


def make_table(header: list[str], body: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ['---'] * len(header), *body]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def accuracy_table(rows: dict) -> str:
    """Accuracy on the test images, and the difference to MoCo v3 of the same seeds."""
    body = []
    for row, title in TITLES.items():
        runs = rows.get(row)
        if not runs:
            continue
        best = [judged(run) for run in runs.values()]
        body.append(
            [title, str(len(runs))]
            + [mean_and_spread([part[name] for part in best]) for name in ('knn20', 'knn200')]
            + [compare(rows, row, 'knn20')]
            + [mean_and_spread([part['linear'] for part in best])]
            + [compare(rows, row, 'linear')]
            + [mean_and_spread([run['query']['linear'] for run in runs.values()])]
        )
    header = ['', 'seeds', 'kNN 20', 'kNN 200', 'to MoCo v3', 'linear', 'to MoCo v3']
    return make_table([*header, 'linear, query encoder'], body)


def summary_table(rows: dict) -> str:
    """The README's few lines: accuracy, and how well the shares of a mix are told."""
    body = []
    for row in ('untrained', *MAIN):
        runs = list(rows.get(row, {}).values())
        if not runs:
            continue
        best = [judged(run) for run in runs]
        body.append(
            [TITLES[row], str(len(runs))]
            + [mean_and_spread([part[name] for part in best]) for name in ('knn20', 'linear')]
            + [mean_and_spread([run['calibration']['2']['error'] for run in runs], 3)]
        )
    return make_table(['', 'seeds', 'kNN (k = 20)', 'linear', 'error of the shares'], body)


def geometry_table(rows: dict) -> str:
    """What the features are like, and how many views the run encoded."""
    body = []
    for row, title in TITLES.items():
        runs = list(rows.get(row, {}).values())
        if not runs:
            continue
        parts = [judged(run) for run in runs]
        body.append(
            [title]
            + [mean_and_spread([p[name] for p in parts], 2) for name in ('alignment', 'uniformity')]
            + [mean_and_spread([part['rank_me'] for part in parts])]
            + [mean_and_spread([part['agreement']['auroc'] for part in parts], 3)]
            + [mean_and_spread([100 * part['agreement']['precision_at_10'] for part in parts])]
            + [f'{statistics.mean(run["encoded_views"] for run in runs) / 1e6:.2f}']
        )
    header = [
        '',
        'alignment',
        'uniformity',
        'RankMe',
        'class AUROC',
        'same class of 10 nearest (%)',
    ]
    return make_table([*header, 'views encoded (millions)'], body)


def shares_table(rows: dict) -> str:
    """How well the shares of a mix are told."""
    body = []
    for row in ('untrained', *MAIN, 'mixup', 'cutmix', 'resizemix'):
        runs = list(rows.get(row, {}).values())
        if not runs:
            continue
        cells = [TITLES[row]]
        for m in '234':
            parts = [run['calibration'][m] for run in runs]
            cells += [mean_and_spread([part['error'] for part in parts], 3)]
            cells += [mean_and_spread([part['correlation'] for part in parts], 2)]
        body.append(cells)
    header = [f'{name}, M = {m}' for m in (2, 3, 4) for name in ('error', 'correlation')]
    return make_table(['', *header], body)


def labels_table(rows: dict) -> str:
    """Accuracy by number of labels."""
    body = [
        [TITLES[row]]
        + [
            mean_and_spread([judged(run)[f'labels{count}'] for run in rows[row].values()])
            for count in LABELS
        ]
        for row in ('untrained', 'mocov3', 'patchmix-2')
        if rows.get(row)
    ]
    return make_table(['labels per class', *map(str, LABELS)], body)


def tuning_table(rows: dict) -> str:
    """Accuracy of the runs that chose rate and temperature, on training images held out."""
    settings = {f'lr {lr}': f'tune-lr{lr}' for lr in ('0.001', '0.002', '0.004')}
    settings['lr 0.002, temperature 0.1'] = 'tune-temperature0.1'
    body = []
    for title, name in settings.items():
        cells = [title]
        for m in (1, 2):
            runs = list(rows.get(f'{name}-m{m}', {}).values())
            for metric in ('knn20', 'linear'):
                cells.append(mean_and_spread([judged(r)[metric] for r in runs]) if runs else '')
        body.append(cells)
    header = [f'{title}, {name}' for title in ('MoCo v3', 'M = 2') for name in ('kNN 20', 'linear')]
    return make_table(['', *header], body)


def detection_table(rows: dict) -> str:
    """Mask AP by number of annotated scenes, and the difference to random weights."""
    body = []
    for start, title in STARTS.items():
        cells = [title]
        for num in COUNTS:
            runs, base = rows.get(f'{start}-{num}', {}), rows.get(f'random-{num}', {})
            if not runs:
                cells.append('')
                continue
            text = mean_and_spread([run['mask_ap'] for run in runs.values()])
            pairs = [
                (runs[seed]['mask_ap'], base[seed]['mask_ap']) for seed in runs if seed in base
            ]
            if start != 'random' and pairs:
                text += f' ({statistics.mean(a - b for a, b in pairs):+.1f})'
            cells.append(text)
        body.append(cells)
    return make_table(['annotated scenes', *map(str, COUNTS)], body)


def detection_tuning_table(rows: dict) -> str:
    """Mask AP of the runs that chose the rates, on training scenes held out."""
    body = []
    for start, title in STARTS.items():
        runs = [rows.get(f'tune-{start}-lr{rate:g}', {}).values() for rate in RATES]
        cells = [mean_and_spread([run['mask_ap'] for run in each]) if each else '' for each in runs]
        body.append([title, *cells])
    return make_table(['', *(f'lr {rate:g}' for rate in RATES)], body)


def photographs_table(rows: dict) -> str:
    """AP of objects of any class in photographs."""
    names = {'box AP': 'box_ap', 'box AP50': 'box_ap50', 'mask AP': 'mask_ap'}
    names['mask AP50'] = 'mask_ap50'
    body = []
    for start, title in STARTS.items():
        runs = list(rows.get(f'photographs-{start}', {}).values())
        cells = [
            mean_and_spread([r[name] for r in runs]) if runs else '' for name in names.values()
        ]
        body.append([title, str(len(runs)), *cells])
    return make_table(['', 'seeds', *names], body)


TABLES = {
    'summary': summary_table,
    'accuracy': accuracy_table,
    'geometry': geometry_table,
    'shares': shares_table,
    'labels': labels_table,
    'tuning': tuning_table,
    'detection': detection_table,
    'detection-tuning': detection_tuning_table,
    'photographs': photographs_table,
}
