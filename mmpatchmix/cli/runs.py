"""List runs: what they are, how far they have come, what they have reached; or compare some.

mmpatchmix runs                              # those below work_dirs
mmpatchmix runs FOLDER
mmpatchmix runs work_dirs/a work_dirs/b      # figures side by side, and what the configs differ in
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmpatchmix.cli.arguments import add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error

if TYPE_CHECKING:
    from mmpatchmix.report.run_record import RunRecord

TITLES = ('run', 'config', 'state', 'done', 'best figures', 'warnings', 'started')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('runs', __doc__)
    parser.add_argument(
        'paths',
        nargs='*',
        default=['work_dirs'],
        metavar='PATH',
        help='a folder to look below (work_dirs by default), or work dirs to compare',
    )
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a list, or a comparison."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        from mmpatchmix.cli.verb import quiet_stack

        quiet_stack()  # before what it silences is imported
        lines = list_runs(args.paths[0]) if len(args.paths) == 1 else compare_runs(args.paths)
        print('\n'.join(lines))


def list_runs(folder: str) -> list[str]:
    """Lay out all runs below a folder, a line each.

    Raises:
        FileNotFoundError: If there is none.
    """
    from mmpatchmix.report.run_record import ABOUT, read_run

    patterns = {'*/vis_data/scalars.json': 2, f'*/{ABOUT}': 1}
    work_dirs = {
        path.parents[up] for pattern, up in patterns.items() for path in Path(folder).rglob(pattern)
    }
    if not work_dirs:
        raise FileNotFoundError(
            f'there is no run below {folder}; name the folder that holds your work dirs.'
        )
    runs = [read_run(work_dir) for work_dir in sorted(work_dirs)]
    return lay_out([TITLES, *(describe(run, Path(folder)) for run in runs)])


def describe(run: 'RunRecord', folder: Path) -> list[str]:
    """Return what the list says of a run."""
    from mmpatchmix.report.report import say_progress, summarise

    best = [f'{name} {value}' for name, value, _ in summarise(run) if '/' in name]
    return [
        str(run.work_dir.relative_to(folder) if run.work_dir != folder else folder.name),
        run.about.get('config_name') or 'not known',
        run.state,
        say_progress(run),
        ', '.join(best[:2]),
        ', '.join(dict.fromkeys(warning['name'] for warning in run.warnings)),
        (run.about.get('started') or '')[:16].replace('T', ' '),
    ]


def compare_runs(work_dirs: Sequence[str]) -> list[str]:
    """Lay out the figures of runs side by side, and below what their configs differ in.

    Raises:
        FileNotFoundError: If one holds no run.
    """
    from mmpatchmix.report.report import compare, name_runs
    from mmpatchmix.report.run_record import read_run

    runs = [read_run(work_dir) for work_dir in work_dirs]
    names = name_runs([run.work_dir for run in runs])
    found = compare(runs, names)
    figures = [list(column) for column in zip(found['columns'], *found['rows'], strict=True)]
    differences = found['differences'] or [['the configs do not differ']]
    return [*lay_out(figures), '', *lay_out([['config', *names], *differences])]


def lay_out(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns begin below each other."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
