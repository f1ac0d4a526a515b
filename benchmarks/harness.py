"""Shared by all benchmarks: options, set-up, alternating measurement, the printed table.

Candidates take turns, round by round, in one process, so that other load of the machine affects
all of them alike; compare medians and ratios, not single milliseconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from mmpatchmix.cli.verb import quiet_stack

quiet_stack()  # before the packages are imported whose messages it removes

import mmpatchmix.registry  # noqa: F401, E402  before a benchmark imports mmpretrain
from mmpatchmix.cli.verb import keep_freed_memory  # noqa: E402
from mmpatchmix.engine.optimizers import computes_bf16  # noqa: E402
from mmpatchmix.report.run_record import describe_machine  # noqa: E402

CONFIGS = Path(__file__).parents[1] / 'configs'
MOMENTUM = 0.996
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that prints the docstring of a script as it is."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse_args(doc: str, *, repeats: int = 9, **defaults) -> argparse.Namespace:
    """Parse ``--repeats``, ``--threads`` and one option per default.

    A default of False makes a flag; a tuple holds choices, the first of which is the default.
    """
    parser = make_parser(doc)
    parser.add_argument('--repeats', type=int, default=repeats, help='rounds; medians are reported')
    parser.add_argument('--threads', type=int, help="torch's threads; by default its own choice")
    for name, value in defaults.items():
        option = '--' + name.replace('_', '-')
        if value is False:
            parser.add_argument(option, action='store_true')
        elif isinstance(value, tuple):
            parser.add_argument(option, choices=value, default=value[0])
        else:
            parser.add_argument(option, type=type(value), default=value, help=f'default: {value}')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def set_up(precision: str = 'fp32') -> tuple[Callable, str]:
    """Prepare a process for training steps, as ``build_runner`` does; seed it with 0.

    Returns a function that gives the autocast context, and the precision, 'fp32' or 'bf16'; 'auto'
    is that of the recipes. The script ends where bfloat16 would only be emulated.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    MMLogger.get_instance('benchmark', log_level='WARNING')  # or each initialised weight is logged
    torch.manual_seed(0)
    has_bf16 = computes_bf16(DEVICE)
    if precision == 'bf16' and not has_bf16:
        print('not measured: this device emulates bfloat16, and the recipes use float32 on it')
        sys.exit()
    if precision == 'auto':
        precision = 'bf16' if has_bf16 else 'fp32'
    is_bf16 = precision == 'bf16'
    return partial(torch.autocast, DEVICE, dtype=torch.bfloat16, enabled=is_bf16), precision


def measure(candidates: dict[str, Callable], repeats: int = 9, warmup: int = 1) -> dict[str, float]:
    """Return the median seconds of each candidate, measured in turns after some warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for round_index in range(-warmup, repeats):
        # Each round starts with another candidate, so none always follows the same one.
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            synchronize()
            began = time.perf_counter()
            candidates[name]()
            synchronize()
            if round_index >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Block until the device has finished all kernels."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_apart(*options: object, env: dict[str, str] | None = None):
    """Run this script with other options in a new process; return the JSON of its last line."""
    command = [sys.executable, sys.argv[0], *map(str, options)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_rows(columns: Sequence[str], rows: Iterable[Sequence]) -> list[dict]:
    """Return rows of a table as dicts."""
    return [dict(zip(columns, row, strict=True)) for row in rows]


def report(name: str, rows: Sequence[dict], **settings) -> None:
    """Print rows of equal keys as a Markdown table, the machine, and all as one line of JSON."""
    print(f'\n{name}\n\n{format_table(rows)}')
    machine = describe_machine()
    print('\n' + ', '.join(f'{key} {value}' for key, value in (settings | machine).items()))
    print(json.dumps({'benchmark': name, **settings, **machine, 'rows': list(rows)}))


def format_table(rows: Sequence[dict]) -> str:
    """Format rows of equal keys as a Markdown table."""
    cells = [list(rows[0]), *([_format(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ['-' * width for width in widths])
    padded = (
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in cells
    )
    return '\n'.join(f'| {" | ".join(line)} |' for line in padded)


def _format(value) -> str:
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.3g}'
    return '' if value is None else str(value)
