"""Write an HTML page about a run, or a comparison of several.

mmpatchmix report work_dirs/digits                    # work_dirs/digits/report.html
mmpatchmix report work_dirs/a work_dirs/b --out ab.html

Works while a run is in progress; the page shows when it was written. It needs no network and no
other file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmpatchmix.cli.arguments import add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser('report', __doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='folders of runs')
    parser.add_argument(
        '--out', help='the HTML file; default: report.html in the work dir, for several runs here'
    )
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the work dirs, write the page and print its path."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        from mmpatchmix.report.report import write_report

        folder = Path(args.work_dirs[0] if len(args.work_dirs) == 1 else '')
        print(f'written to {write_report(args.work_dirs, args.out or folder / "report.html")}')
