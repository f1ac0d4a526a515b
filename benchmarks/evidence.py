"""Make the tables and figures of the documents from what is in benchmarks/results/.

    python benchmarks/evidence.py          # write them
    python benchmarks/evidence.py --check  # only say whether the documents are up to date

A table stands between `<!-- table NAME -->` and `<!-- end -->`; what is written there by hand is
lost. NAME is a function of this file for docs/evidence.md, or a file that `make benchmarks` wrote
for docs/performance.md. Figures go to docs/images/.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import ttest_rel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
DOCUMENTS = [ROOT / 'docs/evidence.md', ROOT / 'docs/performance.md']
IMAGES = ROOT / 'docs/images'
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
    **{f'mix-patch-{p}': f'M = 2, mix patch of {p} pixels' for p in (2, 8, 16)},
    'mixup': 'Mixup, same soft targets',
    'cutmix': 'CutMix, same soft targets',
    'resizemix': 'ResizeMix, same soft targets',
    'no-momentum-mocov3': 'MoCo v3, no momentum encoder',
    'no-momentum-patchmix-2': 'M = 2, no momentum encoder',
    'local-mocov3': 'MoCo v3 + 4 local crops',
    'local-patchmix-2': 'M = 2 + 4 local crops',
    'untrained': 'untrained',
}
LABELS = (1, 2, 5, 10, 20, 50, 100)


def read(path: Path = RESULTS / 'methods.jsonl') -> dict[str, dict[int, dict]]:
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


def compare(runs: dict[int, dict], base: dict[int, dict], name: str) -> str:
    """Format the mean difference to the baseline over common seeds, with the paired t-test."""
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
            + [compare(runs, rows.get(BASELINE, {}), 'knn20')]
            + [mean_and_spread([part['linear'] for part in best])]
            + [compare(runs, rows.get(BASELINE, {}), 'linear')]
            + [mean_and_spread([run['query']['linear'] for run in runs.values()])]
        )
    header = ['', 'seeds', 'kNN 20', 'kNN 200', 'to MoCo v3', 'linear', 'to MoCo v3']
    return make_table([*header, 'linear, query encoder'], body)


def geometry_table(rows: dict) -> str:
    """What the features are like, and what the run cost."""
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
            + [f'{statistics.median(run["train_seconds"] for run in runs) / 60:.0f}']
        )
    header = [
        '',
        'alignment',
        'uniformity',
        'RankMe',
        'class AUROC',
        'same class of 10 nearest (%)',
    ]
    return make_table([*header, 'views encoded (millions)', 'minutes'], body)


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


TABLES = {
    'accuracy': accuracy_table,
    'geometry': geometry_table,
    'shares': shares_table,
    'labels': labels_table,
    'tuning': tuning_table,
}


def printed_table(name: str) -> str:
    """Return the table that a benchmark printed, and a line on where and when."""
    lines = (RESULTS / name).read_text().splitlines()
    about = json.loads(lines[-1])
    caption = [about[key] for key in ('processor', 'accelerator', 'torch', 'date')]
    caption[0] += f', {about["threads"]} of {about["cores"]} cores'
    caption[1] = f'accelerator: {caption[1]}'
    caption[2] = f'torch {caption[2]}'
    repeats = [f'medians of {about["repeats"]} rounds'] if 'repeats' in about else []
    table = '\n'.join(line for line in lines if line.startswith('|'))
    return f'{table}\n\n*{"; ".join(caption + repeats)}.*'


def fill(document: str, rows: dict) -> str:
    """Return the document with its tables made anew."""

    def table(match: re.Match) -> str:
        name = match[2]
        made = TABLES[name](rows) if name in TABLES else printed_table(name)
        return f'{match[1]}\n\n{made}\n\n<!-- end -->'

    return re.sub(r'(<!-- table ([\w.-]+) -->).*?<!-- end -->', table, document, flags=re.DOTALL)


def draw(rows: dict, folder: Path) -> None:
    """Draw learning curves, shares and few labels."""
    folder.mkdir(parents=True, exist_ok=True)
    styles = {row: f'C{number}' for number, row in enumerate(MAIN)} | {'untrained': '0.5'}

    figure = Figure(figsize=(13, 4.2), layout='constrained', dpi=110)
    curves, labels, shares = figure.subplots(1, 3)
    for row, colour in styles.items():
        runs = list(rows.get(row, {}).values())
        if not runs:
            continue
        settings = dict(color=colour, label=TITLES[row], marker='.')
        if runs[0]['curve_knn20']:
            points = [
                statistics.mean(v) for v in zip(*(r['curve_knn20'] for r in runs), strict=True)
            ]
            curves.plot(range(2, 2 * len(points) + 1, 2), points, **settings)
        points = [statistics.mean(judged(r)[f'labels{n}'] for r in runs) for n in LABELS]
        labels.plot(LABELS, points, **settings)
        by_bin = defaultdict(list)
        for run in runs:
            for true, predicted, *_ in run['calibration']['2']['curve']:
                by_bin[round(true, 1)].append((true, predicted))
        means = [
            [statistics.mean(v) for v in zip(*by_bin[number], strict=True)]
            for number in sorted(by_bin)
        ]
        shares.plot(*zip(*means, strict=True), **settings)
    curves.set(xlabel='epoch', ylabel='kNN (k = 20), held-out training images (%)')
    labels.set(xlabel='labels per class', ylabel='accuracy (%)', xscale='log')
    labels.set_xticks(LABELS, map(str, LABELS))
    shares.plot([0, 1], [0, 1], color='0.7', linestyle='--')
    shares.set(
        xlabel='true share of an image in a mix of two', ylabel='share that similarity tells'
    )
    curves.set_title('Learning')
    labels.set_title('Few labels')
    shares.set_title('Shares of a mix')
    labels.legend(fontsize=8)
    figure.savefig(folder / 'evidence.png')


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if outdated')
    args = parser.parse_args()
    rows = read()
    for path in DOCUMENTS:
        before = path.read_text()
        after = fill(before, rows)
        if args.check and after != before:
            sys.exit(f'{path} is outdated: run {Path(__file__).name}')
        path.write_text(after)
    if not args.check:
        draw(rows, IMAGES)


if __name__ == '__main__':
    main()
