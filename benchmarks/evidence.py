"""Make the tables and figures of the documents from what is in benchmarks/results/.

    python benchmarks/evidence.py          # write them
    python benchmarks/evidence.py --check  # only say whether the documents are up to date

A table stands between `<!-- table NAME -->` and `<!-- end -->`; what is written there by hand is
lost. NAME is a function of evidence_tables.py, or a file that `make benchmarks` wrote. Figures go
to docs/images/.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from evidence_tables import (
    COUNTS,
    LABELS,
    MAIN,
    STARTS,
    TABLES,
    TITLES,
    judged,
    read,
)
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
DOCUMENTS = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
IMAGES = ROOT / 'docs/images'


def printed_table(name: str) -> str:
    """Return the table that a benchmark printed, and a line on where and when."""
    path = RESULTS / name
    if not path.is_file():
        command = 'gpu-check' if name == 'gpu.txt' else 'benchmarks'
        return f'*Not measured yet: `make {command}`.*'
    lines = path.read_text().splitlines()
    if not lines[-1].startswith('{'):
        return f'*{lines[-1][0].upper()}{lines[-1][1:]}.*'
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


def draw_detection(rows: dict, folder: Path) -> None:
    """Draw mask AP against the number of annotated scenes."""
    figure = Figure(figsize=(6, 4.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    for start, title in STARTS.items():
        runs = {num: rows.get(f'{start}-{num}', {}).values() for num in COUNTS}
        points = {num: [run['mask_ap'] for run in each] for num, each in runs.items() if each}
        if points:
            means = [statistics.mean(values) for values in points.values()]
            spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in points.values()]
            axis.errorbar(list(points), means, spread, label=title, marker='o', capsize=3)
    if not axis.has_data():  # nothing measured yet
        return
    axis.set(xlabel='annotated scenes', ylabel='mask AP (%)', xscale='log')
    axis.set_xticks(COUNTS, map(str, COUNTS))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(folder / 'detection.png')


def draw_methods(rows: dict, folder: Path) -> None:
    """Draw learning curves, few labels and shares."""
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
            curves.plot(range(1, len(points) + 1), points, **settings)
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


def read_all() -> dict:
    """Return the last run of each row and seed, of all comparisons."""
    names = ('methods', 'detection', 'photographs')
    return {row: runs for name in names for row, runs in read(RESULTS / f'{name}.jsonl').items()}


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if outdated')
    args = parser.parse_args()
    rows = read_all()
    for path in DOCUMENTS:
        before = path.read_text()
        after = fill(before, rows)
        if args.check and after != before:
            sys.exit(f'{path} is outdated: run {Path(__file__).name}')
        path.write_text(after)
    if not args.check:
        draw_methods(rows, IMAGES)
        draw_detection(rows, IMAGES)


if __name__ == '__main__':
    main()
