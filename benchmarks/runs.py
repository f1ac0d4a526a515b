"""What restartable comparisons share: many runs, each a process and a line of JSON."""

import argparse
import concurrent.futures
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def parse_runs(doc: str, rows: list[str], results: Path) -> argparse.ArgumentParser:
    """Make a parser of the options that say which runs there are to be."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--list', action='store_true', help='list the rows and what is done')
    parser.add_argument('--rows', nargs='+', choices=rows, metavar='ROW', default=rows)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--jobs', type=int, default=1, help='runs side by side, one thread each')
    parser.add_argument('--results', type=Path, default=results)
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)  # in this process
    return parser


def run_all(
    script: str,
    args: argparse.Namespace,
    digest: Callable[[str, int], str],
    prepare: Callable[[], None],
    options: tuple[str, ...] = (),
) -> None:
    """Start the runs that the results do not hold yet, rows of one seed after the seed before.

    Args:
        script: Path of the script, which takes ``--one`` with one row and one seed.
        args: Of :func:`parse_runs`.
        digest: Of the config, from row and seed: a changed config is another run.
        prepare: Called once before the first run.
        options: Further options for each run.
    """
    done = {(line['row'], line['seed'], line['config']) for line in read_results(args.results)}
    wanted = [(row, seed) for seed in args.seeds for row in args.rows]
    todo = [(row, seed) for row, seed in wanted if (row, seed, digest(row, seed)) not in done]
    if args.list:
        for row, seed in wanted:
            print(f'  {row:<28} seed {seed}  {"to do" if (row, seed) in todo else "done"}')
        return
    print(f'{len(todo)} runs to do, {len(wanted) - len(todo)} done before', flush=True)
    if todo:
        prepare()
    logs = Path('work_dirs') / Path(script).stem
    logs.mkdir(parents=True, exist_ok=True)
    threads = {} if args.jobs == 1 else dict(OMP_NUM_THREADS='1', OPENCV_NUM_THREADS='1')

    def start(row: str, seed: int) -> None:
        command = [sys.executable, script, '--one', '--rows', row, '--seeds', str(seed)]
        command += ['--results', str(args.results), *options]
        log = logs / f'{row}-{seed}.log'
        with log.open('w') as file:
            result = subprocess.run(
                command, stdout=file, stderr=file, env=os.environ | threads, check=False
            )
        if result.returncode:
            raise SystemExit(f'{row}, seed {seed} failed with {result.returncode}; see {log}')

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(start, row, seed): (row, seed) for row, seed in todo}
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            row, seed = futures[future]
            future.result()
            left = (time.monotonic() - began) / number * (len(todo) - number) / 60
            print(
                f'{row} seed {seed} done, {number} of {len(todo)}, ETA {left:.0f} min', flush=True
            )


def digest_config(cfg: Any, *more: Any) -> str:
    """Hash what a result depends on: model, images, optimizer, schedules, length, seed.

    Loops, hooks and loggers are not in it: a run stays done when files are saved in another way.

    Args:
        cfg: The config of the run.
        more: Whatever else it depends on, as plain data.
    """
    loaders = {
        name: (cfg[name].dataset.to_dict(), cfg[name].get('batch_size'))
        for name in ('train_dataloader', 'test_dataloader')
        if cfg.get(name)
    }
    momentum = (cfg.default_hooks.get('momentum') or {}).get('momentum')
    parts = [cfg.model.to_dict(), loaders, cfg.optim_wrapper.to_dict(), momentum]
    parts += [[each.to_dict() for each in cfg.param_scheduler], cfg.train_cfg.max_epochs]
    text = json.dumps([*parts, cfg.randomness.seed, *more], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_results(path: Path) -> list[dict]:
    """Read the lines of earlier runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append_result(path: Path, line: dict) -> None:
    """Append a line with the code's version and the machine; one write, so jobs do not mix."""
    from mmpatchmix.report.run_record import describe_machine

    line = dict(line, code=describe_code(), machine=describe_machine())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(json.dumps(round_floats(line)) + '\n')


def describe_code() -> str:
    """Return the commit, and whether the code differed from it; results and documents are none.

    Where there is no repository, GIT_COMMIT in the environment names it.
    """

    def git(*arguments: str) -> str:
        if not shutil.which('git'):
            return ''
        command = ['git', '-C', str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # What a benchmark writes must not make its own results those of other code.
    others = (':!benchmarks/results', ':!docs', ':!*.md')
    changed = git('status', '--porcelain', '-uno', '--', '.', *others)
    commit = git('rev-parse', '--short=12', 'HEAD') or os.environ.get('GIT_COMMIT', '')[:12]
    return commit + ('-dirty' if changed else '')


def round_floats(value):
    """Round all figures to six digits: more are noise and make the file unreadable."""
    if isinstance(value, float):
        return value if not math.isfinite(value) else float(f'{value:.6g}')
    if isinstance(value, dict):
        return {key: round_floats(part) for key, part in value.items()}
    return [round_floats(part) for part in value] if isinstance(value, (list, tuple)) else value
