"""Everything that needs a GPU, in one command of at most eight minutes.

    make gpu-check
    python benchmarks/gpu_check.py --list
    python benchmarks/gpu_check.py --parts tests step-vit-s-2
    python benchmarks/gpu_check.py --quick     # what fails here, in a few minutes; keeps no figure

Each part is a command of this repository in a process of its own, with a time limit. What it
found is a line of benchmarks/results/gpu.jsonl, and all lines of this GPU are the table
benchmarks/results/gpu.txt, which `python benchmarks/evidence.py` puts into docs/performance.md;
what it printed is in work_dirs/gpu_check/. Parts that time nothing run first, side by side.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch
from harness import report
from runs import HERE, append_result, describe_code, read_results

from mmpatchmix.report.run_record import cores_per_process

RESULTS = HERE / 'results/gpu.jsonl'
ROOT = HERE.parent
LOGS = ROOT / 'work_dirs/gpu_check'
# The last two fill the compiler's cache for parts that are timed.
UNTIMED = ('tests', 'training', 'memory', 'compiles-vit-s-10', 'compiles-vit-s-2')
MINUTES = 8
GIB = 2**30
# Images of a step, by the memory of the GPU in GiB.
BATCHES = {70: 128, 35: 64, 18: 32, 0: 16}
# What a command says that prints no figures as JSON.
SAID = re.compile(r'\d+ (passed|failed).*|after \d+ epochs .*')


def plan(batch: int, scratch: Path, repeats: int = 7, seconds: int = 8) -> dict[str, tuple]:
    """Return the parts: how many seconds each may take, and its command.

    Args:
        batch: Images of a step.
        scratch: A folder for what a part writes.
        repeats: Rounds of what is timed.
        seconds: For each phase of the loader.
    """
    marked = [path for path in ROOT.glob('tests/**/test_*.py') if 'mark.gpu' in path.read_text()]
    tests = sorted(str(path.relative_to(ROOT)) for path in marked)
    sized = ['--repeats', repeats, '--batch', batch]
    photos = ['patchmix_vit-s_folder.py', '--synthetic', '--json', '--seconds', seconds]
    small = ['patchmix_vit-digits.py', '--epochs', 20, '--work-dir', scratch / 'digits']

    def step(model: str, crops: int, compile: str, times: int = 1, rounds: int = repeats):
        options = ['--precision', 'bf16', '--repeats', rounds, '--batch', times * batch]
        peers = 'yes' if (model, compile, times) == ('vit-s', 'no', 1) else 'no'
        options += ['--model', model, '--crops', crops, '--peers', peers, '--compile', compile]
        return ['benchmarks/step.py', *options]

    def profile(model: str, crops: int):
        options = ['--model', model, '--crops', crops, '--top', 25]
        return ['benchmarks/device_profile.py', *sized, *options]

    return {
        'tests': (300, ['-m', 'pytest', '-m', 'gpu', *tests]),
        'training': (300, ['tools/train.py', f'configs/{small[0]}', *small[1:]]),
        'memory': (300, ['benchmarks/memory.py', '--batch', batch]),
        'compiles-vit-s-10': (300, step('vit-s', 10, 'yes', rounds=1)),
        'compiles-vit-s-2': (300, step('vit-s', 2, 'yes', rounds=1)),
        'profile-vit-s-10': (120, profile('vit-s', 10)),
        'step-vit-s-10': (120, step('vit-s', 10, 'no')),
        'step-vit-s-2': (90, step('vit-s', 2, 'no')),
        'profile-vit-s-2': (90, profile('vit-s', 2)),
        'step-vit-b-10': (90, step('vit-b', 10, 'no')),
        'compiled-vit-s-10': (120, step('vit-s', 10, 'yes')),
        'compiled-vit-s-2': (90, step('vit-s', 2, 'yes')),
        'images-per-second': (150, ['tools/benchmark.py', f'configs/{photos[0]}', *photos[1:]]),
        'knn': (60, ['benchmarks/knn.py', '--repeats', min(3, repeats), '--queries', 50_000]),
        'detector': (60, ['benchmarks/detector_step.py', *sized[:2]]),
        'momentum': (60, ['benchmarks/momentum.py', *sized[:2]]),
        'step-vit-b-2': (60, step('vit-b', 2, 'no')),
        'mixing': (60, ['benchmarks/mixing.py', '--sizes', f'{batch}x224/16', *sized[:2]]),
        'graphs-vit-s-2': (120, step('vit-s', 2, 'graphs')),
        'step-vit-s-10-twice': (60, step('vit-s', 10, 'no', 2)),
        'step-vit-s-2-twice': (60, step('vit-s', 2, 'no', 2)),
        'step-vit-b-10-twice': (60, step('vit-b', 10, 'no', 2)),
        'step-vit-b-2-twice': (60, step('vit-b', 2, 'no', 2)),
        'profile-vit-b-10': (90, profile('vit-b', 10)),
        'graphs-vit-s-10': (120, step('vit-s', 10, 'graphs')),
        'compiled-vit-b-10': (150, step('vit-b', 10, 'yes')),
    }


def run(part: str, command: list, limit: float) -> dict:
    """Run a part.

    Returns:
        dict: ``part``; ``seconds``; ``result``, the JSON it ends with, or ``said``; ``error``, or
        None.
    """
    began, log = time.monotonic(), LOGS / f'{part}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open('w') as printed,
        log.with_suffix('.err').open('w') as complained,
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=printed,
            stderr=complained,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(limit)
            said = log.with_suffix('.err').read_text().strip() or log.read_text().strip()
            error = f'exit code {code}: {" ".join(said.splitlines()[-1:])}' if code else None
        except subprocess.TimeoutExpired:
            error = f'it took more than {limit:.0f} s'
        finally:  # nothing that a part has started may stay on the GPU
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    line = {'part': part, 'seconds': round(time.monotonic() - began, 1), 'error': error}
    lines = log.read_text().strip().splitlines()
    if lines and lines[-1].startswith('{'):
        return line | {'result': json.loads(lines[-1])}
    said = [found[0] for found in map(SAID.search, lines) if found]
    return line | {'said': (said or lines or [''])[-1]}


def find_done(
    lines: list[dict], machine: tuple[str, str], code: str | None = None
) -> dict[str, dict]:
    """Return the last good line of each part of this GPU and torch, and of this code if given."""
    return {
        line['part']: line
        for line in lines
        if line['error'] is None
        and code in (None, line['code'])
        and (line['machine']['accelerator'], line['machine']['torch']) == machine
    }


def tabulate(lines: list[dict]) -> list[dict]:
    """Lay out what the parts found, a row for each of their rows."""
    rows = []
    for line in lines:
        result = line.get('result') or {}
        about = result.get('rows') or [{k: v for k, v in result.items() if k != 'machine'}]
        if line['error'] or not result or line['part'].startswith('compiles'):
            what = line['error'] or line.get('said', 'done')
            rows.append({'part': line['part'], 'what': what, 'found': ''})
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
    parser.add_argument('--quick', action='store_true', help='run all parts small, side by side')
    parser.add_argument(
        '--minutes', type=float, default=MINUTES, help='begin nothing that would end later'
    )
    args = parser.parse_args()
    if args.list:
        print('\n'.join(names))
    elif not torch.cuda.is_available():
        print(f'There is no GPU that torch {torch.__version__} can use: nothing to check here.')
    elif args.quick:
        sys.exit(check_quickly(args.parts))
    else:
        check(args)


def check_quickly(parts: list[str]) -> int:
    """Run parts side by side on few images; return how many failed."""
    print(f'{torch.cuda.get_device_name()}, torch {torch.__version__}', flush=True)
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-') as scratch:
        todo = plan(min(BATCHES.values()), Path(scratch), repeats=1, seconds=1)
        lines = run_side_by_side({part: todo[part] for part in parts}, 60 * MINUTES)
    return sum(line['error'] is not None for line in lines)


def run_side_by_side(
    parts: dict[str, tuple], limit: float, keep: Callable[[dict], None] = lambda line: None
) -> list[dict]:
    """Run parts at the same time, a few at once; keep each when it ends, and say how."""
    lines = []
    with ThreadPoolExecutor(max(1, cores_per_process() // 2)) as pool:
        futures = [pool.submit(run, part, command, limit) for part, (_, command) in parts.items()]
        for future in as_completed(futures):
            lines.append(future.result())
            keep(lines[-1])
            tell(lines[-1])
    return lines


def tell(line: dict) -> None:
    """Say how a part ended."""
    print(f'{line["part"]}: {line["error"] or "done"} ({line["seconds"]:.0f} s)', flush=True)


def check(args: argparse.Namespace) -> None:
    """Run the parts that are to be run, and write the table."""
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    batch = next(batch for least, batch in BATCHES.items() if memory >= least)
    machine, code = (torch.cuda.get_device_name(), torch.__version__), describe_code()
    print(f'{machine[0]}, {memory:.0f} GiB, torch {machine[1]}: steps of {batch} images')
    began, left = time.monotonic(), []
    done = {} if args.again else find_done(read_results(RESULTS), machine, code)

    def seconds_left() -> float:
        return 60 * args.minutes - (time.monotonic() - began)

    def keep(line: dict) -> None:
        append_result(RESULTS, {'batch': batch} | line)

    with tempfile.TemporaryDirectory(prefix='mmpatchmix-') as scratch:
        todo = {
            part: work
            for part, work in plan(batch, Path(scratch)).items()
            if part in args.parts and part not in done
        }
        together = {part: todo.pop(part) for part in UNTIMED if part in todo}
        if together:
            limit = min(max(limit for limit, _ in together.values()), seconds_left())
            run_side_by_side(together, limit, keep)
        for part, (limit, command) in todo.items():
            if seconds_left() < limit / 2:
                left.append(part)
                continue
            line = run(part, command, min(limit, seconds_left()))
            keep(line)
            tell(line)
    done = find_done(read_results(RESULTS), machine)
    if done:
        with RESULTS.with_suffix('.txt').open('w') as file, redirect_stdout(file):
            report('GPU', tabulate(list(done.values())), batch=batch)
        print(RESULTS.with_suffix('.txt').read_text().rpartition('\n{')[0])
    if left:
        print(f'No time was left for {", ".join(left)}: give the command again.')


if __name__ == '__main__':
    main()
