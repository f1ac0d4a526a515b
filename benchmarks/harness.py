"""What all benchmarks share: alternating measurements, one table, one JSON line.

Candidates take turns, round by round, in one process, so that whatever else the
machine does falls on all of them alike; medians and ratios are what to read.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from mmpatchmix.cli.verb import quiet_stack

quiet_stack()  # before what it silences is imported

import mmpatchmix.registry  # noqa: F401, E402  before a benchmark imports mmpretrain
from mmpatchmix.cli.verb import keep_freed_memory  # noqa: E402
from mmpatchmix.engine.bf16_optim_wrapper import computes_bf16  # noqa: E402
from mmpatchmix.report.run_record import describe_machine  # noqa: E402


def parse_args(doc: str, *, repeats: int = 9, **defaults) -> argparse.Namespace:
    """Read the command line: ``--repeats``, ``--threads`` and one option per default.

    An option whose default is False is a flag.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--repeats', type=int, default=repeats, help='rounds; medians are reported')
    parser.add_argument('--threads', type=int, help='threads of torch; its own choice by default')
    for name, value in defaults.items():
        option = '--' + name.replace('_', '-')
        if value is False:
            parser.add_argument(option, action='store_true')
        else:
            parser.add_argument(option, type=type(value), default=value, help=f'default: {value}')
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error('--repeats must be at least 1')
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def keep_memory_as_training_does() -> None:
    """Do what ``build_runner`` does first, for all candidates of this process alike."""
    if not torch.accelerator.is_available():
        keep_freed_memory()


def choose_precision(wanted: str) -> str:
    """Return 'bf16' or 'fp32'; 'auto' is what the recipes take on this device.

    Ends the script where bfloat16 is asked for and only emulated: nobody would train so.
    """
    is_fast = computes_bf16('cuda' if torch.cuda.is_available() else 'cpu')
    if wanted == 'bf16' and not is_fast:
        print('not measured: this device emulates bfloat16, and the recipes take float32 on it')
        sys.exit()
    return wanted if wanted != 'auto' else 'bf16' if is_fast else 'fp32'


def measure(
    candidates: dict[str, Callable[[], object]], repeats: int = 9, warmup: int = 1
) -> dict[str, float]:
    """Return the median time of each candidate, measured in turns.

    Args:
        candidates: Name and function of each. On a GPU the device is waited for.
        repeats: Rounds; every candidate runs once in each.
        warmup: Rounds before that, not counted.

    Returns:
        dict[str, float]: Median seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for round_index in range(-warmup, repeats):
        # Each round starts with another candidate, so none always follows the same one.
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            _synchronize()
            began = time.perf_counter()
            candidates[name]()
            _synchronize()
            if round_index >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(name: str, rows: Sequence[dict], **settings) -> None:
    """Print the rows as a table, the machine below it, and all of it as one JSON line.

    Args:
        name: Name of the benchmark.
        rows: One dict per row, all with the same keys: the columns.
        settings: What was measured: sizes, repeats, goals.
    """
    print(f'\n{name}\n')
    columns = list(rows[0])
    cells = [columns] + [[_show(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for index, line in enumerate(cells):
        print('| ' + ' | '.join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + ' |')
        if index == 0:
            print('|' + '|'.join('-' * (w + 2) for w in widths) + '|')
    machine = describe_machine()
    print('\n' + ', '.join(f'{key} {value}' for key, value in (settings | machine).items()))
    print(json.dumps({'benchmark': name, **settings, **machine, 'rows': list(rows)}))


def _show(value) -> str:
    if value is None:
        return ''
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.3g}'
    return str(value)
