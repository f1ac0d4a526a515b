"""Restartable comparisons: many training runs, each a process and a line of JSON in the results."""

import argparse
import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import make_parser
from mmengine.config import Config
from mmengine.runner import Runner

from mmpatchmix.cli.verb import build_runner
from mmpatchmix.report.run_record import describe_machine

HERE = Path(__file__).parent
# Files whose changes do not make results those of other code.
NO_CODE = (':!benchmarks/results', ':!docs', ':!*.md')


def parse_runs(doc: str, rows: list[str], results: Path) -> argparse.ArgumentParser:
    """Return a parser of the options that choose the runs."""
    parser = make_parser(doc)
    parser.add_argument('--list', action='store_true', help='list the runs and their state')
    parser.add_argument('--rows', nargs='+', choices=rows, metavar='ROW', default=rows)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--jobs', type=int, default=1, help='runs side by side, one thread each')
    parser.add_argument('--results', type=Path, default=results)
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)  # in this process
    return parser


def run_all(
    script: str,
    args: argparse.Namespace,
    build: Callable[[str, int], tuple[Config, str]],
    run: Callable[[str, int, Config], dict],
    prepare: Callable[[], None],
    options: tuple[str, ...] = (),
) -> None:
    """Do the runs that the results do not hold yet, all rows of a seed before the next seed.

    ``build`` returns the config and digest of a row and seed, ``run`` the figures for the line of
    the results; ``prepare`` is called before the first run, ``options`` go to each run's process.
    """
    if args.one:
        row, seed = args.rows[0], args.seeds[0]
        cfg, digest = build(row, seed)
        line = dict(row=row, seed=seed, config=digest)
        append_result(args.results, line | run(row, seed, cfg))
        return
    done = {(line['row'], line['seed'], line['config']) for line in read_results(args.results)}
    wanted = [(row, seed) for seed in args.seeds for row in args.rows]
    todo = [which for which in wanted if (*which, build(*which)[1]) not in done]
    if args.list:
        for which in wanted:
            print('  {:<28} seed {}'.format(*which), 'to do' if which in todo else 'done')
        return
    print(f'{len(todo)} runs to do, {len(wanted) - len(todo)} done before', flush=True)
    if todo:
        prepare()
    logs = Path('work_dirs') / Path(script).stem
    logs.mkdir(parents=True, exist_ok=True)
    threads = {} if args.jobs == 1 else dict(OMP_NUM_THREADS='1', OPENCV_NUM_THREADS='1')

    def start(row: str, seed: int) -> str:
        command = [sys.executable, script, '--one', '--rows', row, '--seeds', str(seed)]
        command += ['--results', str(args.results), *options]
        log = logs / f'{row}-{seed}.log'
        with log.open('w') as file:
            code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | threads)
        if code.returncode:
            raise SystemExit(f'{row}, seed {seed} failed with {code.returncode}; see {log}')
        return f'{row} seed {seed}'

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(start, *which) for which in todo]
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            print(f'{future.result()} done, {number} of {len(todo)}', flush=True)


def digest_config(cfg: Config, *more: Any) -> str:
    """Hash model, images, optimizer, schedules, length and seed of a config, and plain data."""
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


def build_quiet_runner(cfg: Config) -> Runner:
    """Build the Runner of a config that logs to files only."""
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    return build_runner(cfg)


def read_results(path: Path) -> list[dict]:
    """Read the lines of earlier runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append_result(path: Path, line: dict) -> None:
    """Append a line with the code's version and the machine, in one write; floats have 6 digits."""
    text = json.dumps(dict(line, code=describe_code(), machine=describe_machine()))
    line = json.loads(text, parse_float=lambda number: float(f'{float(number):.6g}'))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(json.dumps(line) + '\n')


def describe_code() -> str:
    """Return the commit (without git: GIT_COMMIT), with ``-dirty`` where the code differs."""

    def git(*arguments: str) -> str:
        if not shutil.which('git'):
            return ''
        command = ['git', '-C', str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git('status', '--porcelain', '-uno', '--', '.', *NO_CODE)
    commit = git('rev-parse', '--short=12', 'HEAD') or os.environ.get('GIT_COMMIT', '')[:12]
    return commit + ('-dirty' if changed else '')
