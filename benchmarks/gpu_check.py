"""Everything that needs a GPU, in one command of at most eight minutes.

    make gpu-check
    python benchmarks/gpu_check.py --list
    python benchmarks/gpu_check.py --parts tests step-vit-s-2

Each part is a command of this repository in a process of its own, with a time limit. What it
found is a line of benchmarks/results/gpu.jsonl, and all lines of this GPU are the table
benchmarks/results/gpu.txt, which `python benchmarks/evidence.py` puts into docs/performance.md.
A part that failed is told and the others go on. Parts that are done, on this GPU with this torch
and this code, are not run again, so a cut command goes on when it is given again, and so does one
whose eight minutes were not enough. Without a GPU it says so and ends well.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch
from harness import report
from runs import HERE, append_result, describe_code, read_results

RESULTS = HERE / 'results/gpu.jsonl'
ROOT = HERE.parent
MINUTES = 8
GIB = 2**30
# Images of a step, by the memory of the GPU in GiB.
BATCHES = {70: 128, 35: 64, 18: 32, 0: 16}
# What a command says that prints no figures as JSON.
SAID = re.compile(r'\d+ (passed|failed).*|after \d+ epochs .*')


def plan(batch: int, scratch: Path) -> dict[str, tuple[int, list]]:
    """Return the parts: how many seconds each may take, and its command.

    Args:
        batch: Images of a step.
        scratch: A folder for what a part writes.
    """
    step = ['benchmarks/step.py', '--precision', 'bf16', '--compile', 'yes']
    sized = ['--repeats', 7, '--batch', batch]
    twice = [*sized[:-1], 2 * batch]
    photos = ['patchmix_vit-s_folder.py', '--synthetic', '--json', '--seconds', 8]
    small = ['patchmix_vit-digits.py', '--epochs', 20, '--work-dir', scratch / 'digits']
    graphs = [*step[:-1], 'graphs', *sized, '--crops', 2, '--peers', 'no']
    cost = ['benchmarks/device_cost.py', '--table', 'modelled', '--batch', batch]
    return {
        'tests': (150, ['-m', 'pytest', '-m', 'gpu', 'tests']),
        'step-vit-s-10': (120, [*step, *sized, '--crops', 10]),
        'step-vit-s-2': (90, [*step, *sized, '--crops', 2]),
        'step-vit-b-10': (120, [*step, *sized, '--crops', 10, '--model', 'vit-b', '--peers', 'no']),
        'step-vit-b-2': (90, [*step, *sized, '--crops', 2, '--model', 'vit-b', '--peers', 'no']),
        'modelled': (60, cost),
        'images-per-second': (120, ['tools/benchmark.py', f'configs/{photos[0]}', *photos[1:]]),
        'mixing': (60, ['benchmarks/mixing.py', '--sizes', f'{batch}x224/16']),
        'momentum': (60, ['benchmarks/momentum.py']),
        'knn': (90, ['benchmarks/knn.py']),
        'detector': (90, ['benchmarks/detector_step.py', '--repeats', 5]),
        'training': (120, ['tools/train.py', f'configs/{small[0]}', *small[1:]]),
        'step-vit-s-10-twice': (90, [*step, *twice, '--crops', 10, '--peers', 'no']),
        'step-vit-s-2-graphs': (90, graphs),
        'memory': (240, ['benchmarks/memory.py']),
    }


def run(command: list, limit: float) -> dict:
    """Run a part.

    Returns:
        dict: ``seconds``; ``result``, the JSON it ends with, or ``said``; ``error``, or None.
    """
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, complained = process.communicate(timeout=limit)
            last = (complained.strip() or printed.strip()).splitlines()[-1:]
            code = process.returncode
            error = None if code == 0 else f'exit code {code}: {" ".join(last)}'
        except subprocess.TimeoutExpired:
            printed, error = '', f'it took more than {limit:.0f} s'
        finally:  # nothing that a part has started may stay on the GPU
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    line = {'seconds': round(time.monotonic() - began, 1), 'error': error}
    lines = printed.strip().splitlines()
    if lines and lines[-1].startswith('{'):
        return line | {'result': json.loads(lines[-1])}
    said = [found[0] for found in map(SAID.search, lines) if found]
    return line | {'said': (said or lines or [''])[-1]}


def find_done(lines: list[dict], machine: tuple[str, str], code: str) -> dict[str, dict]:
    """Return the last good line of each part of this GPU, torch and code."""
    return {
        line['part']: line
        for line in lines
        if line['error'] is None
        and line['code'] == code
        and (line['machine']['accelerator'], line['machine']['torch']) == machine
    }


def tabulate(lines: list[dict]) -> list[dict]:
    """Lay out what the parts found, a row for each of their rows."""
    rows = []
    for line in lines:
        result = line.get('result') or {}
        about = result.get('rows') or [{k: v for k, v in result.items() if k != 'machine'}]
        if line['error'] or not result:
            rows.append({'part': line['part'], 'what': line['error'] or line['said'], 'found': ''})
            continue
        for row in about:
            names = [str(value) for value in row.values() if isinstance(value, str)]
            figures = [
                f'{name} {value:.4g}'
                for name, value in row.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            ]
            rows.append(
                {'part': line['part'], 'what': ' '.join(names), 'found': ', '.join(figures)}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(plan(0, Path()))
    parser.add_argument('--parts', nargs='+', choices=names, default=names, metavar='PART')
    parser.add_argument('--list', action='store_true', help='list the parts')
    parser.add_argument('--again', action='store_true', help='run parts that are done, too')
    parser.add_argument(
        '--minutes', type=float, default=MINUTES, help='begin nothing that would end later'
    )
    args = parser.parse_args()
    if args.list:
        print('\n'.join(names))
    elif not torch.cuda.is_available():
        print(f'There is no GPU that torch {torch.__version__} can use: nothing to check here.')
    else:
        check(args)


def check(args: argparse.Namespace) -> None:
    """Run the parts that are to be run, and write the table."""
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    batch = next(batch for least, batch in BATCHES.items() if memory >= least)
    machine, code = (torch.cuda.get_device_name(), torch.__version__), describe_code()
    print(f'{machine[0]}, {memory:.0f} GiB, torch {machine[1]}: steps of {batch} images')
    began, left = time.monotonic(), []
    done = {} if args.again else find_done(read_results(RESULTS), machine, code)
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-') as scratch:
        for part, (limit, command) in plan(batch, Path(scratch)).items():
            seconds_left = 60 * args.minutes - (time.monotonic() - began)
            if part not in args.parts or part in done:
                continue
            if seconds_left < limit / 2:
                left.append(part)
                continue
            print(f'{part} ...', end=' ', flush=True)
            line = {'part': part, 'batch': batch} | run(command, min(limit, seconds_left))
            append_result(RESULTS, line)
            print(f'{line["error"] or "done"} ({line["seconds"]:.0f} s)', flush=True)
    done = find_done(read_results(RESULTS), machine, code)
    if done:
        with RESULTS.with_suffix('.txt').open('w') as file, redirect_stdout(file):
            report('GPU', tabulate(list(done.values())), batch=batch)
        print(RESULTS.with_suffix('.txt').read_text().rpartition('\n{')[0])
    if left:
        print(f'No time was left for {", ".join(left)}: give the command again.')


if __name__ == '__main__':
    main()
