"""Write one page that tells what came of a run, or compares several.

mmpatchmix report work_dirs/digits                    # work_dirs/digits/report.html
mmpatchmix report work_dirs/a work_dirs/b --out ab.html

Runs may still go on; the page says how old it is. It needs no network and no other file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmpatchmix.cli.arguments import add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('report', __doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='folders of runs')
    parser.add_argument(
        '--out', help='the HTML file; report.html in the work dir, or here for several, by default'
    )
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read, write, and say where."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        from mmpatchmix.cli.verb import quiet_stack

        quiet_stack()  # before what it silences is imported
        from mmpatchmix.report.report import write_report

        folder = Path(args.work_dirs[0]) if len(args.work_dirs) == 1 else Path()
        path = write_report(args.work_dirs, args.out or folder / 'report.html')
        print(f'written to {path}')
