"""Restartable comparisons: many training runs, each a line of JSON in the results."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmpatchmix.cli.verb import build_runner
from mmpatchmix.report.run_record import describe_machine

HERE = Path(__file__).parent
# Files whose changes do not make results those of other code.
NO_CODE = (':!benchmarks/results', ':!docs', ':!*.md')


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
