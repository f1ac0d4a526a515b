"""Make the tables and figures of the documents from benchmarks/results/.

    python benchmarks/evidence.py          # write them
    python benchmarks/evidence.py --check  # exit 1 if a document is outdated

A table stands between `<!-- table NAME -->` and `<!-- end -->`; text written there by hand is lost.
NAME is a function of evidence_tables.py, or a file that `make benchmarks` has written. Figures go
to docs/images/.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from evidence_tables import COUNTS, LABELS, MAIN, STARTS, TABLES, TITLES, Rows, judged, read
from harness import make_parser
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
DOCUMENTS = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
IMAGES = ROOT / 'docs/images'


def printed_table(name: str) -> str:
    """Return the table that a benchmark printed, with its machine and date."""
    path = RESULTS / name
    if not path.is_file():
        command = 'gpu-check' if name == 'gpu.txt' else 'benchmarks'
        return f'*Not measured yet: `make {command}`.*'
    lines = path.read_text().splitlines()
    if not lines[-1].startswith('{'):
        return f'*{lines[-1][0].upper()}{lines[-1][1:]}.*'
    about = json.loads(lines[-1])
    caption = '{processor}, {threads} of {cores} cores; accelerator: {accelerator}; torch {torch}; '
    caption = (caption + '{date}').format(**about)
    if 'repeats' in about:
        caption += f'; medians of {about["repeats"]} rounds'
    return '\n'.join(line for line in lines if line.startswith('|')) + f'\n\n*{caption}.*'


def fill(document: str, rows: Rows) -> str:
    """Return the document with its tables made anew."""

    def table(match: re.Match) -> str:
        name = match[2]
        made = TABLES[name](rows) if name in TABLES else printed_table(name)
        return f'{match[1]}\n\n{made}\n\n<!-- end -->'

    return re.sub(r'(<!-- table ([\w.-]+) -->).*?<!-- end -->', table, document, flags=re.DOTALL)


def draw_detection(rows: Rows) -> None:
    """Draw mask AP against the number of annotated scenes."""
    figure = Figure(figsize=(6, 4.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    for start, title in STARTS.items():
        runs = {num: rows.get(f'{start}-{num}', {}).values() for num in COUNTS}
        points = {num: [run['mask_ap'] for run in each] for num, each in runs.items() if each}
        means = [statistics.mean(values) for values in points.values()]
        spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in points.values()]
        axis.errorbar(list(points), means, spread, label=title, marker='o', capsize=3)
    axis.set(xlabel='annotated scenes', ylabel='mask AP (%)', xscale='log')
    axis.set_xticks(COUNTS, map(str, COUNTS))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(IMAGES / 'detection.png')


def draw_methods(rows: Rows) -> None:
    """Draw learning curves, few labels and shares."""
    figure = Figure(figsize=(13, 4.2), layout='constrained', dpi=110)
    curves, labels, shares = figure.subplots(1, 3)
    colours = {row: f'C{number}' for number, row in enumerate(MAIN)} | {'untrained': '0.5'}
    for row in filter(rows.get, colours):
        runs = rows[row].values()
        settings = dict(color=colours[row], label=TITLES[row], marker='.')
        points = np.mean([run['curve_knn20'] for run in runs], axis=0)
        curves.plot(range(1, len(points) + 1), points, **settings)
        points = [[judged(run)[f'labels{n}'] for n in LABELS] for run in runs]
        labels.plot(LABELS, np.mean(points, axis=0), **settings)
        by_bin = defaultdict(list)
        for run in runs:
            for true, predicted, *_ in run['calibration']['2']['curve']:
                by_bin[round(true, 1)].append((true, predicted))
        means = [np.mean(by_bin[number], axis=0) for number in sorted(by_bin)]
        shares.plot(*zip(*means, strict=True), **settings)
    shares.plot([0, 1], [0, 1], color='0.7', linestyle='--')
    labels.legend(fontsize=8)
    accuracy = 'kNN (k = 20), held-out training images (%)'
    curves.set(title='Learning', xlabel='epoch', ylabel=accuracy)
    labels.set(title='Few labels', xlabel='labels per class', ylabel='accuracy (%)', xscale='log')
    labels.set_xticks(LABELS, map(str, LABELS))
    mix = 'true share of an image in a mix of two'
    shares.set(title='Shares of a mix', xlabel=mix, ylabel='share predicted from similarity')
    figure.savefig(IMAGES / 'evidence.png')


def read_all() -> Rows:
    """Return the last run of each row and seed, of all comparisons."""
    return read(RESULTS / 'methods.jsonl') | read(RESULTS / 'detection.jsonl')


def main() -> None:
    parser = make_parser(__doc__)
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
        draw_methods(rows)
        draw_detection(rows)


if __name__ == '__main__':
    main()
