"""Make the tables and figures of the documents from benchmarks/results/.

    python benchmarks/evidence.py

A table stands between `<!-- table NAME -->` and `<!-- end -->`; text written there by hand is lost.
NAME is a function of evidence_tables.py, or a file that `make benchmarks` has written. Figures go
to docs/images/.
"""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
from evidence_tables import IMAGES, LENGTHS, LEVELS, MAP_TABLES, TABLES, Map, Rows, read, table
from harness import make_parser
from matplotlib.figure import Figure
from runs import read_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
DOCUMENTS = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
LONGEST = '64, 2,048'
PANELS = {
    title: {level: dict(data=data, level=level) for level in LEVELS}
    for data, title in IMAGES.items()
}
PANELS['CIFAR-10, full: batch, images'] = {k.replace(' |', ','): v for k, v in LENGTHS.items()}
PANELS['CIFAR-10, full, longer'] = {LONGEST: PANELS['CIFAR-10, full: batch, images'].pop(LONGEST)}


def printed_table(name: str) -> str:
    """Return the table that a benchmark printed, with its machine and date."""
    path = RESULTS / name
    if not path.is_file():
        commands = {'gpu.txt': 'gpu-check', 'gpu_evidence.txt': 'gpu-evidence'}
        command = commands.get(name, 'benchmarks')
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


def fill(document: str, found: Map, rows: Rows) -> str:
    """Return the document with its tables made anew."""

    def make(match: re.Match) -> str:
        name = match[2]
        if name in MAP_TABLES:
            made = table(found, *MAP_TABLES[name])
        else:
            made = TABLES[name](rows) if name in TABLES else printed_table(name)
        return f'{match[1]}\n\n{made}\n\n<!-- end -->'

    return re.sub(r'(<!-- table ([\w.-]+) -->).*?<!-- end -->', make, document, flags=re.DOTALL)


def draw_map(found: Map) -> None:
    """Draw what mixing gains in kNN: augmentation by images seen, and batch by images seen."""
    figure = Figure(figsize=(14.5, 5.6), layout='constrained', dpi=110)
    axes = figure.subplots(2, 3).flatten()
    for axis, (title, rows) in zip(axes, PANELS.items(), strict=True):
        gaps = [
            measure_gaps(*(found.find(**where, num_mix=m) for m in (1, 2)))
            for where in rows.values()
        ]
        drawn = draw_gaps(axis, list(rows), gaps)
        axis.set(title=title, xlabel='images seen (thousands)')
    label = 'kNN, M = 2 less M = 1 (points); grey: not measured'
    figure.colorbar(drawn, ax=axes, label=label, fraction=0.03)
    figure.savefig(ROOT / 'docs/images/evidence.png')


def measure_gaps(theirs: dict, ours: dict) -> dict[int, float]:
    """Return the mean difference of kNN after each number of images seen, paired by seed."""
    gaps = defaultdict(list)
    for seed in set(ours) & set(theirs):
        pairs = zip(ours[seed]['curve'], theirs[seed]['curve'], strict=True)
        for (step, knn), (_, base) in pairs:
            gaps[step * ours[seed]['batch']].append(knn - base)
    return {images: statistics.mean(each) for images, each in gaps.items()}


def draw_gaps(axis, names: list[str], gaps: list[dict[int, float]]):
    """Draw rows of differences; return what a colour bar needs."""
    seen = sorted(set().union(*gaps) - {0}) or [0]
    values = np.array([[row.get(images, np.nan) for images in seen] for row in gaps])
    axis.set_facecolor('0.9')
    drawn = axis.imshow(values, cmap='RdBu', vmin=-15, vmax=15, aspect='auto')
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = 'white' if abs(value) > 10 else 'black'
            place = dict(ha='center', va='center', color=colour, fontsize=7)
            axis.text(column, row, f'{round(value, 1) + 0.0:+.1f}', **place)
    axis.set_yticks(range(len(names)), names)
    every = range(0, len(seen), 3) if len(seen) > 1 else []
    axis.set_xticks(every, [f'{seen[i] / 1000:.0f}' for i in every])
    return drawn


def draw_curves(found: Map) -> None:
    """Draw kNN over images seen: dashed M = 1, solid M = 2; the mean and range of the seeds."""
    figure = Figure(figsize=(13, 9), layout='constrained', dpi=110)
    axes = figure.subplots(2, 3).flatten()
    for axis, (title, rows) in zip(axes, PANELS.items(), strict=True):
        for number, (name, where) in enumerate(rows.items()):
            for num_mix, style in ((1, '--'), (2, '-')):
                runs = found.find(**where, num_mix=num_mix).values()
                if not runs:
                    continue
                curves = np.array([run['curve'] for run in runs])  # (seeds, points, step and kNN)
                seen = curves[0, :, 0] * next(iter(runs))['batch'] / 1000
                label = f'{name}, M = {num_mix}'
                look = dict(color=f'C{number}', linestyle=style, label=label)
                axis.plot(seen, curves[..., 1].mean(0), **look)
                spread = curves[..., 1].min(0), curves[..., 1].max(0)
                axis.fill_between(seen, *spread, color=look['color'], alpha=0.15)
        axis.set(title=title, xlabel='images seen (thousands)', ylabel='kNN (%)')
        if axis.lines:
            axis.legend(fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.17), ncols=2)
        else:
            axis.text(0.5, 0.5, 'not measured', ha='center')
        axis.grid(alpha=0.3)
    figure.savefig(ROOT / 'docs/images/curves.png')


def read_all() -> tuple[Map, Rows]:
    """Return the runs of the map, and those of the detectors."""
    return Map(read_results(RESULTS / 'map.jsonl')), read(RESULTS / 'detection.jsonl')


def main() -> None:
    make_parser(__doc__).parse_args()
    found, rows = read_all()
    for path in DOCUMENTS:
        path.write_text(fill(path.read_text(), found, rows))
    draw_map(found)
    draw_curves(found)


if __name__ == '__main__':
    main()
