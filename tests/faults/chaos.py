"""Run ckpt-chaos on `mmpatchmix train`: kill it at every file event, resume, compare.

    make chaos
    python -m tests.faults.chaos demo two-ranks-0     # some scenarios
    python -m tests.faults.chaos --points 12 demo     # a sample of each mode

ckpt-chaos (https://github.com/rkb32/ckpt-chaos) records, kills and judges; lost work is a failure.
Commands are forks of one interpreter that has imported everything. Results stay in
``work_dirs/chaos``, whose finished parts are not run again; the table is ``work_dirs/chaos.txt``.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from mmengine.runner import Runner

from benchmarks.harness import report
from mmpatchmix.__main__ import main as train
from mmpatchmix.report import run_report_hook
from tests.calls import SERVER
from tests.datasets.shards import make_shards
from tests.faults import processes, runs

MODES = ('before', 'torn', 'term')
FAIL_ON = 'HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL'
WORK, DATA = Path('work_dirs/chaos'), Path('work_dirs/chaos-data')
PATIENCE = 300  # seconds of a run; an idle machine takes a few
EVENTS = 60  # file events of a run, about
TIME = re.compile(r'\d{8}_\d{6}')  # in names of log files, where runs differ
TOY = (
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.indices=24',
    'val_dataloader.dataset.indices=20',
    'val_cfg.bank_dataloader.dataset.indices=20',
    'val_cfg.more_queries=None',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=1',
    'model.backbone.arch.embed_dims=12',
    'model.backbone.arch.num_layers=2',
    'model.backbone.arch.num_heads=2',
    'model.backbone.arch.feedforward_channels=24',
    'model.neck.in_channels=12',
    'model.neck.hid_channels=16',
    'model.neck.out_channels=8',
    'model.head.predictor.in_channels=8',
    'model.head.predictor.hid_channels=16',
    'model.head.predictor.out_channels=8',
)


class Scenario(NamedTuple):
    """A command, and how ckpt-chaos runs it."""

    command: tuple[str, ...]
    checkpoints: str = 'epoch_*.pth'  # whose numbers are those of ``step``
    step: str = r'resumed epoch: (\d+)'
    ranks: int = 1
    crash_rank: int = 0
    kills: int = 1  # of each run; ckpt-chaos chooses the first, a seed the others
    modes: tuple[str, ...] = MODES


def digits(*options: str, epochs: int = 2) -> tuple[str, ...]:
    """Return the command of the demo with a toy network on 24 images."""
    start = ('train', 'patchmix_vit-digits', '--epochs', str(epochs), '--resume')
    return (*start, '--cfg-options', *TOY, *options)


HOOK = 'default_hooks.checkpoint.'
WITHIN = (f'{HOOK}iterations=1', f'{HOOK}interval=9', 'train_dataloader.dataset.indices=40')
WITHIN = digits(*WITHIN, epochs=1)
TWO = (*digits('train_dataloader.batch_size=4'), '--launcher', 'pytorch')
SHARDS = ('train', 'patchmix_vit-s_folder', '--epochs', '2', '--resume', '--workers', '2')
SHARDS += ('--data-root', str(DATA / 'shards'), '--cfg-options', *TOY[:1], *TOY[5:])
SHARDS += ('train_dataloader.dataset.pipeline.0.num_local=0',)
SCENES = ('train', 'coco/mask-rcnn_vit-digits_scenes', '--epochs', '2', '--resume')
SCENES += ('--data-root', str(DATA / 'scenes'))
SCENES += ('--cfg-options', f'{HOOK}interval=1', f'{HOOK}max_keep_ckpts=3')
SCENARIOS = {
    'demo': Scenario(digits()),
    'two-ranks-0': Scenario(TWO, ranks=2),
    # Rank 1 only makes two folders.
    'two-ranks-1': Scenario(TWO, ranks=2, crash_rank=1, modes=('before', 'term')),
    'within-epoch': Scenario(WITHIN, 'iter_*.pth', r'resumed epoch: \d+, iter: (\d+)'),
    'best': Scenario(digits(f'{HOOK}save_best=knn/top1', f'{HOOK}max_keep_ckpts=1')),
    'three-kills': Scenario(digits(), kills=3),
    'shards': Scenario(SHARDS),
    'scenes': Scenario(SCENES),
}


def run(argv: list[str]) -> None:
    """Run a command of ckpt-chaos in this new process, which it may kill."""
    if 'CKPT_CHAOS_WATCH' in os.environ:
        from ckpt_chaos.targets.common import arm_from_env

        # Version 0.1.8 tells the rank to be killed when, but not that it is the one.
        os.environ['CKPT_CHAOS_CRASH_RANK'] = os.environ.get('RANK', '0')
        arm_from_env(int(os.environ.get('RANK', 0)), lazy=True)
    # Figures stay blank: drawing them takes twice as long as all the rest.
    run_report_hook.draw_mix = lambda *args: Figure((1, 1))
    run_report_hook.draw_pictures = lambda runner, names: [(n, Figure((1, 1))) for n in names]
    if argv[0] == 'digest':
        print(runs.digest(Path(argv[1]), with_log=argv[2] == 'with-log'))
    elif argv[0] == 'again':
        kill_again(int(argv[1]), argv[2:])
    else:
        train(argv)


def kill_again(times: int, argv: list[str]) -> None:
    """Resume and kill a run several times, then resume it to its end."""
    from ckpt_chaos import inject

    work_dir, resume = Path(argv[-1]), Runner.resume
    draw = random.Random(str(work_dir))

    def resume_newest(runner: Runner, *args: Any, **kwargs: Any) -> None:
        resume(runner, *args, **kwargs)
        assert runner.epoch >= newest, f'LOST WORK: {runner.epoch} of {newest} epochs'

    Runner.resume = resume_newest
    for number in range(times + 1):
        newest = max((int(path.stem[6:]) for path in work_dir.glob('epoch_*.pth')), default=0)
        mode, event = draw.choice(MODES), draw.randrange(1, EVENTS)
        child = os.fork() if number < times else 0
        if child == 0:
            if number < times:
                inject.arm(str(work_dir), event, mode, lazy_native=True, torn_python=True)
            return train(argv)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f'kill {number + 2}: {mode} event {event}, exit code {code}', flush=True)


class Forks:
    """The part of ``subprocess`` that ckpt-chaos uses; commands are those of :func:`run`."""

    STDOUT = subprocess.STDOUT
    TimeoutExpired = subprocess.TimeoutExpired

    class Popen:
        """A fork of the interpreter that has imported everything."""

        def __init__(self, cmd: list[str], env: dict, stdout: Any, **_: Any) -> None:
            self.process = processes.start(Path(stdout.name), run, cmd, **env)

        @property
        def returncode(self) -> int | None:
            """Its exit code; None while it runs."""
            return self.process.exitcode

        def poll(self) -> int | None:
            """Return the exit code; None while it runs."""
            return self.process.exitcode

        def kill(self) -> None:
            """Kill it and its data workers."""
            processes.kill_session(self.process.pid)

        def wait(self) -> None:
            """Wait for its end."""
            self.process.join()

    @classmethod
    def run(cls, cmd: list[str], env: dict, timeout: float, **_: Any) -> Any:
        """Run a command to its end."""
        with tempfile.NamedTemporaryFile('r', errors='replace') as log:
            child = cls.Popen(cmd, env, log)
            try:
                code = processes.finish(child.process, timeout)
            except AssertionError:
                raise cls.TimeoutExpired(cmd, timeout) from None
            return subprocess.CompletedProcess(cmd, code, log.read(), '')


def write_data(folder: Path) -> None:
    """Write shards of images and annotated scenes, once."""
    if folder.is_dir():
        return
    make_shards(folder / 'shards', 32, per_shard=8)
    sys.path.append('examples')
    scenes = importlib.import_module('digit_scenes')
    scenes.write_digit_scenes(folder / 'scenes', num_train=4, num_val=2)


def run_chaos(name: str, modes: str, points: int, folder: Path) -> list[Any]:
    """Run ckpt-chaos on a scenario, if it was not run yet in this folder; return its rows."""
    from ckpt_chaos import byo, cli, runner

    events = runner._events
    scenario, done = SCENARIOS[name], folder / 'verdicts.xml'
    tears = 'torn' in modes or scenario.kills > 1  # later kills have any mode
    if not done.exists():
        SERVER.set_forkserver_preload(['tests.preloaded', 'tests.faults.warm'])
        byo.subprocess = Forks
        byo._events = lambda log: [(n, k, TIME.sub('TIME', f), t) for n, k, f, t in events(log)]
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        command = [*scenario.command, '--work-dir', '{out}']
        options = {
            'modes': modes,
            'max-points': points,
            'checkpoint-glob': '{out}/' + scenario.checkpoints,
            'step-regex': scenario.step,
            # A torn file loses half of all that was ever written to it: lines of a log, too.
            'result-cmd': f'digest {{out}} {"no" if tears else "with"}-log',
            'fail-on': FAIL_ON,
            'timeout': PATIENCE,
            'grace': 30,
            'ranks': scenario.ranks,
            'crash-rank': scenario.crash_rank,
            'work': folder,
            'junit': done,
        }
        if scenario.kills > 1:
            options['resume-cmd'] = shlex.join(['again', str(scenario.kills - 1), *command])
        argv = [part for key, value in options.items() for part in (f'--{key}', str(value))]
        cli.main(['run', '--ckpt-ignore-size', *argv, '--', *command])
        commit = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True)
        (folder / 'commit').write_bytes(commit.stdout.strip())
    return runner.rejudge(folder)


def tabulate(work: Path) -> list[dict]:
    """Return a row for every finished scenario and mode."""
    from ckpt_chaos.runner import rejudge

    table = []
    for folder in (work / f'{name}-{mode}' for name in SCENARIOS for mode in MODES):
        if not (folder / 'verdicts.xml').exists():
            continue
        rank = SCENARIOS[folder.name.rpartition('-')[0]].crash_rank
        events = (folder / f'reference/events.log.rank{rank}').read_text().splitlines()
        control, *rows = rejudge(folder)
        counts = Counter(row.verdict for row in rows)
        table.append(
            {
                'run': folder.name.rpartition('-')[0],
                'mode': folder.name.rpartition('-')[2],
                'file events': len(events),
                'points': len(rows),
                'killed or stopped': sum(row.crashed for row in rows),
                **{name: counts[name] for name in FAIL_ON.split(',')[:3]},
                'PASS': counts['PASS'],
                'control': control.verdict,
                'commit': (folder / 'commit').read_text(),
            }
        )
    return table


def main(argv: list[str] | None = None) -> int:
    """Run scenarios, print and keep the table after each mode; return 1 if any point failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('scenarios', nargs='*', metavar='SCENARIO', help=', '.join(SCENARIOS))
    parser.add_argument('--modes', nargs='+', default=MODES, choices=MODES)
    parser.add_argument('--points', type=int, default=10**6, help='at most, per mode')
    parser.add_argument('--work', type=Path, default=WORK)
    args = parser.parse_args(argv)
    write_data(DATA)
    os.environ['PATCHMIX_IMG_SIZE'] = '32'
    for name, mode in itertools.product(args.scenarios or SCENARIOS, args.modes):
        if mode not in SCENARIOS[name].modes:
            continue
        run_chaos(name, mode, args.points, args.work / f'{name}-{mode}')
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            report('chaos', tabulate(args.work), ckpt_chaos=version('ckpt-chaos'))
        args.work.with_suffix('.txt').write_text(text.getvalue().lstrip())
    print(text.getvalue())
    return int(any(row['PASS'] < row['points'] for row in tabulate(args.work)))


if __name__ == '__main__':
    from tests.faults.chaos import main  # not as __main__, which forks cannot import

    sys.exit(main())
