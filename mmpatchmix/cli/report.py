"""Write an HTML page about a run, or a comparison of several.

mmpatchmix report work_dirs/digits                    # work_dirs/digits/report.html
mmpatchmix report work_dirs/a work_dirs/b --out ab.html

Works while a run is in progress; the page shows when it was written. It needs no network and no
other file.
"""

import argparse
from pathlib import Path

from mmpatchmix.cli.verb import make_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='folders of runs')
    about = 'the HTML file; default: report.html in the work dir, for several runs here'
    parser.add_argument('--out', help=about)


def report(args: argparse.Namespace) -> None:
    """Read the work dirs, write the page and print its path."""
    from mmpatchmix.report.report import write_report

    folder = Path(args.work_dirs[0] if len(args.work_dirs) == 1 else '')
    print(f'written to {write_report(args.work_dirs, args.out or folder / "report.html")}')


parse_args, main = make_verb('report', __doc__, add_arguments, report)
