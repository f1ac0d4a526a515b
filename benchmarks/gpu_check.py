"""Run everything that needs a GPU, in one command of at most eight minutes.

    make gpu-check
    python benchmarks/gpu_check.py --parts tests step-vit-s-2

Each part is a command of this repository in a process of its own, with a time limit, and a line of
benchmarks/results/gpu.jsonl; the output is in work_dirs/gpu_check/. Parts that are done, on this
GPU with this torch and this code, are not run again. Without a GPU it ends with success.
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
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch
from harness import make_parser, report
from runs import HERE, append_result, describe_code, read_results

from mmpatchmix.report.run_record import cores_per_process

RESULTS = HERE / 'results/gpu.jsonl'
ROOT = HERE.parent
LOGS = ROOT / 'work_dirs/gpu_check'
# The last two fill the compiler's cache for parts that are timed.
UNTIMED = ('tests', 'training', 'memory', 'compiles-vit-s-10', 'compiles-vit-s-2')
# Images of a step, by the memory of the GPU in GiB.
BATCHES = {70: 128, 35: 64, 18: 32, 0: 16}
# The line to keep of commands that print no JSON.
SUMMARY = re.compile(r'\d+ (passed|failed).*|after \d+ epochs .*')


def plan(batch: int, scratch: Path) -> dict[str, tuple]:
    """Return the time limit in seconds and the command of each part, for steps of a batch."""
    marked = [path for path in ROOT.glob('tests/**/test_*.py') if 'mark.gpu' in path.read_text()]
    tests = ' '.join(sorted(str(path.relative_to(ROOT)) for path in marked))
    rounds, sized = '--repeats 7', f'--repeats 7 --batch {batch}'
    step = 'benchmarks/step.py --precision bf16'
    profile = f'benchmarks/device_cost.py --table profile {sized}'
    ours = f'{step} {sized} --table ours'
    twice = f'{step} {rounds} --batch {2 * batch} --table ours --crops'
    once = f'{step} --repeats 1 --batch {batch} --table ours --compile yes'
    digits = f'configs/patchmix_vit-digits.py --epochs 20 --work-dir {scratch}/digits'
    loader = 'configs/patchmix_vit-s_folder.py --synthetic --json --seconds 8'
    detector = f'benchmarks/step.py --table detector {rounds} --precision auto --batch 2'
    parts = {
        'tests': (300, f'-m pytest -m gpu {tests}'),
        'training': (300, f'tools/train.py {digits}'),
        'memory': (300, f'benchmarks/memory.py --batch {batch}'),
        'compiles-vit-s-10': (300, f'{once} --crops 10'),
        'compiles-vit-s-2': (300, f'{once} --crops 2'),
        'profile-vit-s-10': (120, f'{profile} --crops 10'),
        'step-vit-s-10': (120, f'{step} {sized} --crops 10'),
        'step-vit-s-2': (90, f'{step} {sized} --crops 2'),
        'profile-vit-s-2': (90, f'{profile} --crops 2'),
        'step-vit-b-10': (90, f'{ours} --model vit-b --crops 10'),
        'compiled-vit-s-10': (120, f'{ours} --crops 10 --compile yes'),
        'compiled-vit-s-2': (90, f'{ours} --crops 2 --compile yes'),
        'images-per-second': (150, f'-m mmpatchmix benchmark {loader}'),
        'knn': (60, 'benchmarks/knn.py --queries 50000 --repeats 3'),
        'detector': (60, detector),
        'momentum': (60, f'benchmarks/momentum.py {rounds}'),
        'step-vit-b-2': (60, f'{ours} --model vit-b --crops 2'),
        'mixing': (60, f'benchmarks/mixing.py --sizes {batch}x224/16 {rounds}'),
        'graphs-vit-s-2': (120, f'{ours} --crops 2 --compile graphs'),
        **{f'step-vit-s-{n}-twice': (60, f'{twice} {n}') for n in (10, 2)},
        **{f'step-vit-b-{n}-twice': (60, f'{twice} {n} --model vit-b') for n in (10, 2)},
        'profile-vit-b-10': (90, f'{profile} --model vit-b --crops 10'),
        'graphs-vit-s-10': (120, f'{ours} --crops 10 --compile graphs'),
        'compiled-vit-b-10': (150, f'{ours} --model vit-b --crops 10 --compile yes'),
    }
    return {part: (limit, command.split()) for part, (limit, command) in parts.items()}


def run(part: str, command: list, limit: float) -> dict:
    """Run a part; return its seconds, its error, and the JSON of its last line or its summary."""
    began, log = time.monotonic(), LOGS / f'{part}.log'
    errors = log.with_suffix('.err')
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *map(str, command)]
    with log.open('w') as out, errors.open('w') as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            last = (errors.read_text().strip() or log.read_text().strip()).splitlines()[-1:]
            error = f'exit code {code}: {" ".join(last)}' if code else None
        except subprocess.TimeoutExpired:
            error = f'it took more than {limit:.0f} s'
        with suppress(ProcessLookupError):  # child processes of a part must not stay on the GPU
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    line = {'part': part, 'seconds': round(time.monotonic() - began, 1), 'error': error}
    print(f'{part}: {error or "done"} ({line["seconds"]:.0f} s)', flush=True)
    lines = log.read_text().strip().splitlines()
    if lines and lines[-1].startswith('{'):
        return line | {'result': json.loads(lines[-1])}
    said = [found[0] for found in map(SUMMARY.search, lines) if found]
    return line | {'said': (said or lines or [''])[-1]}


def find_done(lines: list[dict], machine: tuple, code: str | None = None) -> dict[str, dict]:
    """Return the last good line of each part of this GPU and torch, and of this code if given."""
    return {
        line['part']: line
        for line in lines
        if line['error'] is None
        and code in (None, line['code'])
        and (line['machine']['accelerator'], line['machine']['torch']) == machine
    }


def tabulate(lines: list[dict]) -> list[dict]:
    """Return a row of the table for each row that a part has printed."""
    rows = []
    for line in lines:
        part, result = line['part'], line.get('result')
        if not result or part.startswith('compiles'):
            rows.append({'part': part, 'what': line.get('said', 'done'), 'found': ''})
            continue
        for row in result.get('rows') or [result]:
            figures = [f'{k} {v:.4g}' for k, v in row.items() if type(v) in (int, float)]
            names = ' '.join(value for value in row.values() if isinstance(value, str))
            rows.append({'part': part, 'what': names, 'found': ', '.join(figures)})
    return rows


def check(args: argparse.Namespace) -> None:
    """Run the chosen parts that are not done, and write the table."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    batch = next(batch for least, batch in BATCHES.items() if memory >= least)
    machine, code = (torch.cuda.get_device_name(), torch.__version__), describe_code()
    print(f'{machine[0]}, {memory:.0f} GiB, torch {machine[1]}: steps of {batch} images')
    end, left = time.monotonic() + 60 * args.minutes, []
    done = {} if args.again else find_done(read_results(RESULTS), machine, code)
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-') as scratch:
        parts = plan(batch, Path(scratch))
        todo = {part: parts[part] for part in parts if part in args.parts and part not in done}
        untimed = {part: todo.pop(part) for part in UNTIMED if part in todo}
        with ThreadPoolExecutor(max(1, cores_per_process() // 2)) as pool:  # side by side
            futures = [
                pool.submit(run, part, command, min(limit, end - time.monotonic()))
                for part, (limit, command) in untimed.items()
            ]
            for future in as_completed(futures):
                append_result(RESULTS, future.result() | {'batch': batch})
        for part, (limit, command) in todo.items():
            if end - time.monotonic() < limit / 2:
                left.append(part)
            else:
                line = run(part, command, min(limit, end - time.monotonic()))
                append_result(RESULTS, line | {'batch': batch})
    done = find_done(read_results(RESULTS), machine)
    if done:
        with RESULTS.with_suffix('.txt').open('w') as file, redirect_stdout(file):
            report('GPU', tabulate(list(done.values())), batch=batch)
    if left:
        print(f'No time was left for {", ".join(left)}: repeat the command.')


def main() -> None:
    parser = make_parser(__doc__)
    names = list(plan(0, Path()))
    parser.add_argument('--parts', nargs='+', choices=names, default=names, metavar='PART')
    parser.add_argument('--again', action='store_true', help='run parts again that are done')
    parser.add_argument('--minutes', type=float, default=8, help='time limit of all parts')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f'There is no GPU that torch {torch.__version__} can use: nothing to check here.')
    else:
        check(args)


if __name__ == '__main__':
    main()
