"""The tables of docs/evidence.md, from the lines of the .jsonl files of benchmarks/results/."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import map_data
from runs import read_results
from scipy.stats import ttest_rel

IMAGES = {
    'digits': 'digits',
    'cifar10': 'CIFAR-10, 4,096 images',
    'bands': 'CIFAR-10 as 5 bands',
    'chest': 'chest X-rays',
}
LEVELS = ('none', 'crops', 'crops+flip', 'full')
CHANGES = {
    'no-source': 'without `loss_source`',
    'no-mix-source': 'without `loss_mix_source`',
    'no-mix-mix': 'without `loss_mix_mix`',
    'tau-0.1': '`mix_temperature=0.1`',
    'tau-0.4': '`mix_temperature=0.4`',
    'mix_up': 'Mixup, same soft targets',
    'cut_mix': 'CutMix, same soft targets',
    'resize_mix': 'ResizeMix, same soft targets',
}
LABELS = (10, 20, 50, 100)
BATCHES = (32, 64, 128, 256)
FEW_IMAGES = {2_048: 12_000, 512: 3_000, 128: 3_000}  # and steps of 64
STARTS = {
    'random': 'random weights',
    'mocov3': 'MoCo v3 on unlabelled crops',
    'patchmix': 'PatchMix on unlabelled crops',
    'plain-mocov3': 'MoCo v3, without augmentation',
    'plain-patchmix': 'PatchMix, without augmentation',
}
STARTS_COMPARED = {
    ('mocov3', 'random'): 'MoCo v3 on unlabelled crops less random weights',
    ('patchmix', 'random'): 'PatchMix on unlabelled crops less random weights',
    ('plain-mocov3', 'random'): 'MoCo v3, without augmentation, less random weights',
    ('plain-patchmix', 'random'): 'PatchMix, without augmentation, less random weights',
    ('patchmix', 'mocov3'): 'PatchMix less MoCo v3, on unlabelled crops',
    ('plain-patchmix', 'plain-mocov3'): 'PatchMix less MoCo v3, without augmentation',
}
COUNTS = (10, 20, 50, 100, 400)

Runs = dict[int, dict]  # by seed
Rows = dict[str, Runs]


def best_rate(lines: Iterable[dict], data: str, level: str, num_mix: int) -> float | None:
    """Return the rate with the best kNN of the runs that tune it, None before all are done."""
    wanted = dict(data=data, level=level, num_mix=min(num_mix, 2), is_tuning=True)
    found = {line['lr']: line['knn'] for line in lines if wanted.items() <= line.items()}
    return max(found, key=found.get) if found.keys() == set(map_data.RATES) else None


class Map:
    """The runs of the map by their settings."""

    def __init__(self, lines: Iterable[dict]) -> None:
        self.lines = list(lines)

    def find(self, **wanted) -> Runs:
        """Return the last run of each seed with these settings; others have their defaults."""
        plain = dict(alpha=None, batch=64, images=None, change=None, is_tuning=False)
        if not wanted.get('is_tuning'):
            plain['steps'] = map_data.STEPS[wanted['data']]
            tuned = [wanted.get(name) for name in ('data', 'level', 'num_mix')]
            rate = best_rate(self.lines, *tuned) if None not in tuned else None
            plain |= dict(lr=rate) if rate else {}
        wanted = plain | wanted
        return {line['seed']: line for line in self.lines if wanted.items() <= line.items()}


def read(path: Path) -> Rows:
    """Read the last line of each row and seed, of the last run's version of torch."""
    rows, runs = defaultdict(dict), read_results(path)
    for run in runs:
        if run['machine']['torch'] == runs[-1]['machine']['torch']:
            rows[run['row']][run['seed']] = run
    return rows


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Format the mean, and the standard deviation over seeds if there are several."""
    values = list(values)
    text = f'{statistics.mean(values):.{digits}f}' if values else ''
    return f'{text} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else text


def cell(runs: Runs, metric: str, digits: int = 1) -> str:
    """Format a figure of the runs; empty where no run has it."""
    return spread((run[metric] for run in runs.values() if metric in run), digits)


def difference(ours: Runs, theirs: Runs, metric: str) -> str:
    """Format the mean difference of runs paired by seed, its standard error, and p of a t-test."""
    if ours == theirs:  # the row of M = 1 itself
        return ''
    seeds = sorted(s for s in set(ours) & set(theirs) if metric in ours[s])
    gaps = [ours[seed][metric] - theirs[seed][metric] for seed in seeds]
    text = f'{round(statistics.mean(gaps), 1) + 0.0:+.1f}' if gaps else ''  # never -0.0
    if len(gaps) < 2:
        return text
    p = ttest_rel(*([runs[seed][metric] for seed in seeds] for runs in (ours, theirs))).pvalue
    return f'{text} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.1f} (p = {p:.2g})'


def make_table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    header = ' | '.join(header).split(' | ')  # a title may be several
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, ['---'] * len(header), *body])


Column = tuple[str, Callable[[Map, dict], str]]  # title; cell of the runs with some settings


def value(title: str, metric: str, digits: int = 1, **changes) -> Column:
    """Return a column of a figure of the runs with some more settings."""
    return title, lambda found, where: cell(found.find(**where | changes), metric, digits)


def gap(title: str, ours: dict, base: dict | None = None, metric: str = 'knn') -> Column:
    """Return a column of differences, by default to M = 1."""
    both = ours, base or dict(num_mix=1)
    return title, lambda found, where: difference(*(found.find(**where | x) for x in both), metric)


def objectives(metric: str, digits: int = 1) -> list[Column]:
    """Return a column for each M, and the difference of M = 2 to M = 1."""
    columns = [value(f'M = {m}', metric, digits, num_mix=m) for m in (1, 2, 3, 4)]
    return [*columns, gap('M = 2 less M = 1', dict(num_mix=2), metric=metric)]


def table(found: Map, corner: str, rows: dict[str, dict], columns: list[Column]) -> str:
    """Format a table of the runs of each row; rows without any are left out."""
    body = [[title, *(make(found, where) for _, make in columns)] for title, where in rows.items()]
    body = [line for line in body if any(line[1:])]
    return make_table([corner, *(title for title, _ in columns)], body)


def detection_table(rows: Rows) -> str:
    """Mask AP by number of annotated scenes, and differences paired by seed."""
    body = [
        [title, *(cell(rows.get(f'{start}-{num}', {}), 'mask_ap') for num in COUNTS)]
        for start, title in STARTS.items()
    ]
    for (ours, theirs), title in STARTS_COMPARED.items():
        pairs = [[rows.get(f'{start}-{num}', {}) for start in (ours, theirs)] for num in COUNTS]
        body.append([title, *(difference(*pair, 'mask_ap') for pair in pairs)])
    body = [line for line in body if any(line[1:])]
    return make_table(['annotated scenes', *map(str, COUNTS)], body)


CELLS = {
    f'{title} | {level}': dict(data=data, level=level)
    for data, title in IMAGES.items()
    for level in LEVELS
}
BOTH_RATES = {
    f'{IMAGES[data]} | {level} | {rate}': dict(data=data, level=level, lr=rate)
    for data, level, rates in (
        ('bands', 'none', (3e-3,)),
        ('bands', 'full', (1e-3, 3e-3)),
        ('chest', 'full', (3e-3,)),
        ('cifar10', 'crops+flip', (3e-3,)),
        ('digits', 'crops', (1e-3, 3e-3)),
        ('digits', 'crops+flip', (1e-3, 3e-3)),
        ('digits', 'full', (3e-4, 1e-3)),  # the lower one is none of map_data.RATES
    )
    for rate in rates
}
LENGTHS = {f'{batch} | 4,096': dict(batch=batch, steps=192_000 // batch) for batch in BATCHES} | {
    f'64 | {images:,}': dict(images=images, steps=steps) for images, steps in FEW_IMAGES.items()
}
LENGTHS = {title: dict(data='cifar10', level='full') | where for title, where in LENGTHS.items()}
PLAIN = dict(num_mix=1, change=None)
LARGEST = dict(data='digits', level='none')
TERMS = {
    'MoCo v3 (M = 1)': LARGEST | dict(num_mix=1),
    'PatchMix, M = 4': LARGEST | dict(num_mix=4),
    **{title: LARGEST | dict(num_mix=4, change=name) for name, title in CHANGES.items()},
}
STARTING = {
    f'{title} | {start}': dict(data=data, level='none') | where
    for data, title in IMAGES.items()
    for start, where in {
        'random weights': dict(steps=0),
        'M = 1': dict(num_mix=1),
        'M = 2': dict(num_mix=2),
        'M = 1, with crops': dict(num_mix=1, level='crops'),
    }.items()
}
SCORES = {f'{n}': f'labels{n}' for n in LABELS} | {
    f'fine-tuned, {n}': f'finetuned{n}' for n in LABELS
}
OTHERS = {f'M = {m}': dict(num_mix=m) for m in (2, 3, 4)}
OTHERS |= {f'M = {m}, unequal shares': dict(num_mix=m, alpha=1.0) for m in (2, 3)}
WHERE = 'images | augmentation'
# Of the runs of the map: the title of the first columns, the rows, the other columns.
MAP_TABLES = {
    'map-knn': (WHERE, CELLS, objectives('knn')),
    'map-plain': (
        WHERE,
        {title: where for title, where in CELLS.items() if where['level'] != 'crops+flip'},
        objectives('knn'),
    ),
    'map-linear': (WHERE, CELLS, objectives('linear')),
    'map-auroc': (WHERE, CELLS, objectives('linear_auroc')),
    'map-shares': (WHERE, CELLS, objectives('share_error', 3)[:-1]),
    'map-others': (WHERE, CELLS, [gap(title, ours) for title, ours in OTHERS.items()]),
    'map-both-rates': (
        f'{WHERE} | rate per 64',
        BOTH_RATES,
        [
            column
            for name, metric in (('kNN', 'knn'), ('linear', 'linear'))
            for column in (
                *(value(f'{name}, M = {m}', metric, num_mix=m) for m in (1, 2)),
                gap(f'{name}, M = 2 less M = 1', dict(num_mix=2), metric=metric),
            )
        ],
    ),
    'map-terms': (
        '',
        TERMS,
        [value('kNN', 'knn'), gap('to M = 1', {}, PLAIN)],
    ),
    'map-length': ('batch | images', LENGTHS, objectives('knn')),
    'map-labels': ('images | start', STARTING, [value(*score) for score in SCORES.items()]),
    'map-rates': (
        WHERE,
        CELLS,
        [
            value(f'M = {m}, {rate}', 'knn', num_mix=m, lr=rate, is_tuning=True)
            for m in (1, 2)
            for rate in map_data.RATES
        ]
        + [value(f's, M = {m}', 'cpu_seconds', 0, num_mix=m) for m in (1, 2)],
    ),
}
TABLES = {'detection': detection_table}
