"""One page that tells what came of a run, or compares some: HTML that asks for nothing outside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from mmpatchmix.files import write_text
from mmpatchmix.report.plots import Plot, plan_plots, thin
from mmpatchmix.report.run_record import RunRecord, read_run

TEMPLATE = 'report.html.jinja'

# Of bokeh's parts those that draw, and make plots from JavaScript.
LIBRARY = ('bokeh.min.js', 'bokeh-api.min.js')

# What the files of pictures show, in words that also stand for them where they are not seen.
CAPTIONS = {
    'mixed': 'A mix: sources, mixtures, the source of each patch, and the target',
    'neighbours': 'The nearest images of some held-out images, nearest first',
    'attention': 'Where the class token looks: its attention in the last block, mean of the heads',
    'similar': 'How similar some images are to others',
    'shares': 'Is a mix as similar to its images as their shares say?',
    'map': 'A map of held-out images (t-SNE of their features)',
    'similarity_matrix': 'Similarity of held-out images, ordered by class or cluster',
    'detections': 'Annotated objects, and below them those that were found',
    'evaluation': 'What "mmpatchmix evaluate" drew: shares of mixes, classes of the nearest',
}

PICTURE_BYTES = 2_500_000  # of all pictures together; the page keeps below 5 MB

PICTURE_WIDTH = 1400

NUM_ROWS = 50  # of a table of numbers


def write_report(work_dirs: Sequence[str | Path], path: str | Path) -> Path:
    """Write one page about a run, or about several and how they differ.

    Args:
        work_dirs: Folders of runs, which may still go on.
        path: The HTML file.

    Returns:
        Path: The file.

    Raises:
        FileNotFoundError: If a folder holds no run.
    """
    # Here, not above: a run goes on where it is missing.
    from jinja2 import Environment, PackageLoader

    runs = [read_run(folder) for folder in work_dirs]
    names = name_runs([run.work_dir for run in runs])
    plots = plan_plots(runs, names)
    are_epochs = all(run.epochs_per_iter for run in runs if run.training)
    budget = PICTURE_BYTES // max(1, len(runs))
    environment = Environment(
        loader=PackageLoader('mmpatchmix', 'report'),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(TEMPLATE).render(
        title=names[0] if len(runs) == 1 else f'{len(runs)} runs',
        written=datetime.now().astimezone(),
        runs=[describe_run(run, name, budget) for run, name in zip(runs, names, strict=True)],
        comparison=compare(runs, names) if len(runs) > 1 else None,
        plots=[asdict(plot) for plot in plots],
        tables=[tabulate(plot) for plot in plots],
        x_label='epoch' if are_epochs else 'iteration',
        library=read_library(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def read_library() -> list[str]:
    """Read what draws the plots in a browser from bokeh's package; nothing where it is missing."""
    spec = find_spec('bokeh')  # which takes a second to import, and we need two of its files
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0], 'server', 'static', 'js')
    return [(folder / name).read_text(encoding='utf-8') for name in LIBRARY]


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Name runs by the ends of their paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-length:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{name} ({number})' for number, name in enumerate(names, 1)]


def describe_run(run: RunRecord, name: str, budget: int) -> dict[str, Any]:
    """Collect what the page says of one run.

    Args:
        run: The run.
        name: What it is called.
        budget: Bytes that its pictures may take.
    """
    pictures, left_out = embed_pictures(run, budget)
    last = run.training[-1] if run.training else {}
    return dict(
        name=name,
        run=run,
        progress=say_progress(run),
        tiles=summarise(run),
        last=last,
        evaluations=tabulate_evaluations(run.validation),
        pictures=pictures,
        left_out=left_out,
    )


def say_progress(run: RunRecord) -> str:
    """Say how far a run has come."""
    last = run.training[-1] if run.training else {}
    if not last:
        return 'nothing has been logged yet'
    about = run.about
    text = f'iteration {last["iter"]:,}'
    if about.get('max_iters'):
        text += f' of {about["max_iters"]:,} ({100 * last["iter"] / about["max_iters"]:.0f} %)'
    if run.epochs_per_iter:
        text += f', epoch {last["iter"] * run.epochs_per_iter:.4g}'
        text += f' of {about["max_epochs"]}' if about.get('max_epochs') else ''
    return text


def summarise(run: RunRecord) -> list[tuple[str, str, str]]:
    """Choose the figures that the page begins with: name, value, and where it comes from."""
    tiles = []
    for name, is_high in headline_metrics(run):
        found = [(r[name], r['step']) for r in run.validation if name in r]
        value, step = max(found) if is_high else min(found)
        tiles.append((name, f'{value:.4g}', f'best, epoch {step}; last {found[-1][0]:.4g}'))
    last = run.training[-1] if run.training else {}
    for name in ('loss', 'kl', 'time'):
        if name in last:
            unit = ' s' if name == 'time' else ''
            tiles.append((name, f'{last[name]:.4g}{unit}', f'iteration {last["iter"]:,}'))
    return tiles


def headline_metrics(run: RunRecord) -> list[tuple[str, bool]]:
    """Return the evaluations that matter most, and whether high is good."""
    names = {name: None for record in run.validation for name in record}
    chosen = [n for n in names if n.endswith(('/top1', '_mAP')) and not n.startswith('pixels')]
    return [(name, True) for name in chosen[:4]]


def tabulate(plot: Plot) -> dict[str, Any]:
    """Lay out the numbers of a plot to 6 digits, at most 50 rows, for those who do not see it."""
    titles = [series.label for series in plot.series]
    columns = [dict(zip(series.x, series.y, strict=True)) for series in plot.series]
    steps = sorted({step for column in columns for step in column})
    chosen = thin(steps, NUM_ROWS)
    rows = [[f'{step:.6g}', *(_write(column.get(step)) for column in columns)] for step in chosen]
    return dict(titles=titles, rows=rows, left_out=len(steps) - len(chosen))


def tabulate_evaluations(records: Sequence[dict]) -> dict[str, Any]:
    """Lay out all evaluations, a row each."""
    names = {name: None for record in records for name in record if '/' in name}
    rows = [
        [record['step'], *(_write(record.get(name)) for name in names)]
        for record in thin(records, 2 * NUM_ROWS)
    ]
    return dict(names=list(names), rows=rows, left_out=len(records) - len(rows))


def compare(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Lay runs side by side: best figures, and what their recipes differ in."""
    figures: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        last = run.training[-1] if run.training else {}
        values = {f'best {name}': value for name, value, _ in summarise(run)[:4] if '/' in name}
        for name in ('loss', 'kl', 'time', 'iter'):
            if name in last:
                values[f'last {name}'] = f'{last[name]:.6g}'
        values['warnings'] = str(len(run.warnings))
        for name, value in values.items():
            figures.setdefault(name, [''] * len(runs))[number] = value
    rows = [
        [name, run.about.get('recipe') or '', run.state, *(figures[f][number] for f in figures)]
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    configs = [run.about.get('values') for run in runs]
    known = [config for config in configs if config]
    keys = {key: None for config in known for key in config}
    differences = [
        [key, *('not known' if config is None else config.get(key, '') for config in configs)]
        for key in keys
        if len({config.get(key) for config in known}) > 1
    ]
    return dict(
        columns=['run', 'recipe', 'state', *figures],
        rows=rows,
        names=list(names),
        differences=differences,
    )


def embed_pictures(run: RunRecord, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Turn the pictures of a run into text, the last of each name first, then the first.

    Args:
        run: The run.
        budget: Bytes that they may take.

    Returns:
        tuple: Pictures with ``caption``, ``alt`` and ``source``, and the files that found no room.
    """
    chosen, earlier = [], []
    for name, steps in run.pictures.items():
        caption = CAPTIONS.get(name, name)
        numbers = list(steps)
        when = f', epoch {numbers[-1]}' if numbers[-1] else ''
        chosen.append((steps[numbers[-1]], f'{caption}{when}'))
        if len(numbers) > 1:
            first = f'epoch {numbers[0]}' if numbers[0] else 'before training'
            earlier.append((steps[numbers[0]], f'{caption}, {first}'))
    pictures, left_out = [], []
    for path, caption in chosen + earlier:
        try:
            content = _shrink(path)
        except OSError:  # being written
            continue
        if len(content) > budget:
            left_out.append(str(path))
            continue
        budget -= len(content)
        source = f'data:image/webp;base64,{base64.b64encode(content).decode()}'
        pictures.append(dict(caption=caption, source=source))
    return pictures, left_out


def _write(value: Any) -> str:
    return '' if value is None else f'{value:.6g}' if isinstance(value, float) else str(value)


def _shrink(path: Path) -> bytes:
    with Image.open(path) as image:
        image = image.convert('RGB')
        image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        file = io.BytesIO()
        image.save(file, 'webp', quality=82, method=2)
    return file.getvalue()
