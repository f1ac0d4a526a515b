"""The HTML page of a run, or of several compared, in one file without external resources."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from mmpatchmix.files import write_text
from mmpatchmix.report.plots import plan_plots, thin
from mmpatchmix.report.run_record import RunRecord, read_run

LIBRARY = ('bokeh.min.js', 'bokeh-api.min.js')  # of bokeh's package

# Captions of the pictures by name; also their alternative texts.
CAPTIONS = {
    'mixed': 'A mix: sources, mixtures, the source of each patch, and the target',
    'neighbours': 'Some held-out images and their nearest neighbours, nearest first',
    'attention': 'Attention of the class token in the last block, mean of the heads',
    'similar': 'Similarity of one image to others',
    'shares': 'Shares of mixes predicted from similarity, against the true shares',
    'map': 'A map of held-out images (t-SNE of their features)',
    'similarity_matrix': 'Similarity of held-out images, ordered by class or cluster',
    'detections': 'Annotated objects, and below them the detected ones',
    'evaluation': 'Figure of "mmpatchmix evaluate": shares of mixes, classes of the nearest',
}
PICTURE_BYTES = 2_500_000  # of all pictures together; the page stays below 5 MB
PICTURE_WIDTH = 1400
NUM_ROWS = 50  # of a table of numbers
LAST = ('loss', 'kl', 'time')  # figures of the last iteration


def write_report(work_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Write an HTML page about runs, finished or in progress; return its path.

    ``FileNotFoundError`` if a folder holds no run.
    """
    from jinja2 import Environment, PackageLoader  # here: a run without it trains all the same

    runs = [read_run(folder) for folder in work_dirs]
    names = name_runs([run.work_dir for run in runs])
    plots = plan_plots(runs, names)
    curves = [{s['label']: (s['x'], s['y']) for s in plot['series']} for plot in plots]
    units = {'epoch' if r.epochs_per_iter else 'iteration' for r in runs if r.training} or {'epoch'}
    budget = PICTURE_BYTES // max(1, len(runs))
    options = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment = Environment(loader=PackageLoader('mmpatchmix', 'report'), **options)
    html = environment.get_template('report.html.jinja').render(
        title=names[0] if len(runs) == 1 else f'{len(runs)} runs',
        written=datetime.now().astimezone(),
        runs=[_describe_run(run, name, budget) for run, name in zip(runs, names, strict=True)],
        comparison=compare(runs, names) if len(runs) > 1 else None,
        plots=plots,
        tables=[_tabulate(each, NUM_ROWS) for each in curves],
        x_label=' or '.join(sorted(units)),  # of runs that count epochs, and that count none
        library=_read_library(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def format_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as text in aligned columns, below the titles if there are any."""
    table = Table(*titles, box=None, pad_edge=False, show_header=any(titles))
    for row in rows:
        table.add_row(*map(str, row))
    # File names may contain markup. Lines are not wrapped, so that they can be searched.
    console = Console(width=10_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return '\n'.join(line.rstrip() for line in capture.get().splitlines())


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Name runs by the shortest ends of their paths that are different."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-length:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{name} ({number})' for number, name in enumerate(names, 1)]


def describe_progress(run: RunRecord) -> str:
    """Return the iterations and epochs of a run so far and in all."""
    if not run.last:
        return 'nothing has been logged yet'
    iteration, about = run.last['iter'], run.about
    text = f'iteration {iteration:,}'
    if about.get('max_iters'):
        text += f' of {about["max_iters"]:,} ({100 * iteration / about["max_iters"]:.0f} %)'
    if run.epochs_per_iter:
        text += f', epoch {iteration * run.epochs_per_iter:.4g}'
        text += f' of {about["max_epochs"]}' if about.get('max_epochs') else ''
    return text


def summarise(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the headline figures: name, value, and where it was measured."""
    tiles = []
    names = dict.fromkeys(name for record in run.validation for name in record)
    names = [n for n in names if re.fullmatch('(?!pixels).*(/top1|_mAP|mIoU)', n)]
    unit = 'epoch' if run.epochs_per_iter else 'iteration'
    for name in names[:4]:
        found = [(record[name], record['step']) for record in run.validation if name in record]
        value, step = max(found)
        tiles.append((name, f'{value:.4g}', f'best, {unit} {step}; last {found[-1][0]:.4g}'))
    for name in LAST:
        if name in run.last:
            unit = ' s' if name == 'time' else ''
            tiles.append((name, f'{run.last[name]:.4g}{unit}', f'iteration {run.last["iter"]:,}'))
    return tiles


def compare(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return a table of figures, a row per run, and the config values that differ."""
    figures = []
    for run in runs:
        values = {f'best {name}': value for name, value, _ in summarise(run) if name not in LAST}
        last = {name: run.last[name] for name in (*LAST, 'iter') if name in run.last}
        values |= {f'last {name}': f'{value:.6g}' for name, value in last.items()}
        figures.append(values | {'warnings': str(len(run.warnings))})
    titles = list(dict.fromkeys(name for values in figures for name in values))
    rows = [
        [name, run.about.get('recipe') or '', run.state, *(values.get(t, '') for t in titles)]
        for run, name, values in zip(runs, names, figures, strict=True)
    ]
    configs = [run.about.get('values') for run in runs]
    known = [config for config in configs if config]
    differences = [
        [key, *('unknown' if config is None else config.get(key, '') for config in configs)]
        for key in dict.fromkeys(key for config in known for key in config)
        if len({config.get(key) for config in known}) > 1
    ]
    columns = ['run', 'recipe', 'state', *titles]
    return dict(columns=columns, rows=rows, names=list(names), differences=differences)


def embed_pictures(run: RunRecord, budget: int) -> tuple[list[dict[str, str]], list[str]]:
    """Encode the pictures of a run, the last of each name, then the first, in ``budget`` bytes.

    Returned are pictures with ``caption`` and ``source``, and the files beyond the budget.
    """
    chosen, first, unit = [], [], 'epoch' if run.epochs_per_iter else 'iteration'
    for name, steps in run.pictures.items():
        caption, numbers = CAPTIONS.get(name, name), list(steps)
        when = f', {unit} {numbers[-1]}' if numbers[-1] else ''
        chosen.append((steps[numbers[-1]], f'{caption}{when}'))
        if len(numbers) > 1:
            when = f'{unit} {numbers[0]}' if numbers[0] else 'before training'
            first.append((steps[numbers[0]], f'{caption}, {when}'))
    pictures, left_out = [], []
    for path, caption in chosen + first:
        file = io.BytesIO()
        with suppress(OSError), Image.open(path) as image:  # incomplete: the run is writing it
            image = image.convert('RGB')
            image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
            image.save(file, 'webp', quality=82, method=2)
        content = file.getvalue()
        if len(content) > budget:
            left_out.append(str(path))
        elif content:
            budget -= len(content)
            source = f'data:image/webp;base64,{base64.b64encode(content).decode()}'
            pictures.append(dict(caption=caption, source=source))
    return pictures, left_out


def _describe_run(run: RunRecord, name: str, budget: int) -> dict[str, Any]:
    """Return the variables of the template for one run; ``budget`` is that of its pictures."""
    pictures, left_out = embed_pictures(run, budget)
    names = dict.fromkeys(name for record in run.validation for name in record)
    names = [name for name in names if name not in ('step', 'time', 'data_time')]
    found = {n: [(r['step'], r[n]) for r in run.validation if n in r] for n in names}
    evaluations = {n: tuple(zip(*points, strict=True)) for n, points in found.items()}
    return dict(
        name=name,
        run=run,
        progress=describe_progress(run),
        tiles=summarise(run),
        evaluations=_tabulate(evaluations, 2 * NUM_ROWS),
        pictures=pictures,
        left_out=left_out,
    )


def _tabulate(curves: Mapping[str, tuple[Sequence, Sequence]], most: int) -> dict[str, Any]:
    """Return a table of curves, x and y, at up to ``most`` values of x, numbers to 6 digits."""

    def write(value: Any) -> str:
        return '' if value is None else f'{value:.6g}' if isinstance(value, float) else str(value)

    columns = [dict(zip(*curve, strict=True)) for curve in curves.values()]
    steps = sorted({step for column in columns for step in column})
    chosen = thin(steps, most)
    rows = [[write(step), *(write(column.get(step)) for column in columns)] for step in chosen]
    return dict(titles=list(curves), rows=rows, left_out=len(steps) - len(chosen))


def _read_library() -> list[str]:
    """Read bokeh's JavaScript from its package, without importing it; empty if it is missing."""
    spec = find_spec('bokeh')
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0], 'server', 'static', 'js')
    return [(folder / name).read_text(encoding='utf-8') for name in LIBRARY]
