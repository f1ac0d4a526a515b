"""Read what a run has written into its work dir, and write ``run.json`` at its start and end."""

import json
import math
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import joblib
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import Runner

from mmpatchmix import __version__
from mmpatchmix.engine.ranks import flatten
from mmpatchmix.files import is_in_use, list_recipes, write_text

ABOUT = 'run.json'  # beside the log of each start
LOGGED_BESIDES = ('health/', 'probe/')  # training scalars with records of their own
LOCAL_KEYS = ('work_dir', 'launcher', 'experiment_name')  # do not belong to the recipe
PACKAGES = ('torch', 'torchvision', 'timm', 'numpy')
PACKAGES += tuple(f'onedl-{name}' for name in ('mmengine', 'mmcv', 'mmpretrain', 'mmdetection'))
PACKAGES += ('mmengine', 'mmcv', 'mmpretrain', 'mmdet')  # upstream's own distributions


@dataclass
class RunRecord:
    """The contents of a work dir."""

    work_dir: Path
    about: dict[str, Any]  # run.json of the last start, see write_start(); empty if there is none
    config: str  # text of the whole config
    num_starts: int
    in_use: bool  # a process holds the lock of the work dir
    training: list[dict]  # records with 'iter', in order
    validation: list[dict]  # records with 'step', an epoch, in order
    warnings: list[dict]  # of the health hook: 'iter', 'epoch', 'name', 'message', 'hint'
    judgement: dict[str, float]  # metrics of "mmpatchmix evaluate"
    pictures: dict[str, dict[int, Path]]  # by name and step, steps in order

    @property
    def state(self) -> str:
        """``'finished'``, ``'in progress'`` or ``'not finished'``."""
        if self.about.get('ended'):
            return 'finished'
        return 'in progress' if self.in_use else 'not finished'

    @property
    def last(self) -> dict:
        """The last training record; empty before the first."""
        return self.training[-1] if self.training else {}

    @property
    def epochs_per_iter(self) -> float | None:
        """Epochs per iteration; None if the run does not count epochs."""
        last, ends = self.last, [self.about.get(name) for name in ('max_epochs', 'max_iters')]
        # The epoch of a record is that in progress.
        epochs, iters = ends if all(ends) else (last.get('epoch'), last.get('iter'))
        return epochs / iters if last.get('epoch') and iters else None


def read_run(work_dir: str | Path) -> RunRecord:
    """Read a work dir, also of a run in progress; ``FileNotFoundError`` if nothing was logged."""
    work_dir = Path(work_dir)
    training, validation = read_scalars(work_dir)
    starts = sorted(work_dir.glob(f'*/{ABOUT}'))
    if not (training or validation or starts):
        raise FileNotFoundError(
            f'{work_dir} holds no run: there is no TIMESTAMP/vis_data/scalars.json in it. Name the '
            'folder that --work-dir named when training (work_dirs/CONFIG by default).'
        )
    health = sorted(work_dir.glob('*/vis_data/health.jsonl'))
    about = _read_json(starts[-1]) if starts else {}
    configs = [work_dir / about['config_name']] if about.get('config_name') else []
    configs += sorted(work_dir.glob('*/vis_data/config.py'), reverse=True)
    return RunRecord(
        work_dir=work_dir,
        about=about,
        config=next((f.read_text(encoding='utf-8') for f in configs if f.is_file()), ''),
        num_starts=max(len(starts), 1),
        in_use=is_in_use(work_dir),
        training=training,
        validation=validation,
        warnings=[record for path in health for record in _read_lines(path)],
        judgement=_read_json(work_dir / 'evaluation' / 'evaluation.json').get('metrics') or {},
        pictures=_find_pictures(work_dir),
    )


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read ``*/vis_data/scalars.json`` of mmengine, joined over all starts of a run.

    Returned are training records with ``iter`` and ``epoch``, and validation records with ``step``
    (an epoch), each in order. A start that continues from an earlier checkpoint replaces what came
    after it; the later of two records of one step replaces the earlier.
    """
    training: dict[int, dict] = {}
    validation: dict[int, dict] = {}
    after: dict[int, tuple[int, int]] = {}  # epoch and iteration of the record before a validation
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        records, last = _read_lines(path), (0, 0)
        first = min((_locate(r) for r in records if 'loss' in r), default=(math.inf,))
        training = {step: row for step, row in training.items() if _locate(row) < first}
        validation = {step: validation[step] for step in validation if after[step] < first}
        for record in records:
            named = [name for name in record if '/' in name]
            if 'loss' in record:
                training[record['iter']], last = record, _locate(record)
            elif named and all(name.startswith(LOGGED_BESIDES) for name in named):
                step = record.get('iter', record.get('step'))
                training[step] = {'iter': step} | training.get(step, {}) | record
            elif record.keys() - {'step', 'time', 'data_time'}:  # several hooks write at one step
                validation[record['step']] = validation.get(record['step'], {}) | record
                after[record['step']] = last
    return tuple([records[step] for step in sorted(records)] for records in (training, validation))


def _locate(record: dict) -> tuple[int, int]:
    # A resumed run with a larger batch counts fewer iterations of an epoch.
    return record.get('epoch', 0), record['iter']


def _read_lines(path: Path) -> list[dict]:
    """Read JSON objects, one a line; the last line may be incomplete if the run was killed."""
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    return [record for record in map(_parse, lines) if record]


def _read_json(path: Path) -> dict:
    return _parse(path.read_text(encoding='utf-8')) if path.is_file() else {}


def _parse(text: str) -> dict:
    """Parse a JSON object; empty if the text is none or incomplete."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _find_pictures(work_dir: Path) -> dict[str, dict[int, Path]]:
    """Find the visualizer's ``NAME_STEP.png`` and the two pictures with names of their own."""
    found: dict[str, dict[int, Path]] = {}
    if (path := work_dir / 'mixed.png').is_file():
        found['mixed'] = {0: path}
    for path in sorted(work_dir.glob('*/vis_data/vis_image/*_*.png')):
        name, _, step = path.stem.rpartition('_')
        if step.isdecimal():
            found.setdefault(name, {})[int(step)] = path
    if (path := work_dir / 'evaluation' / 'similarity.png').is_file():
        found['evaluation'] = {0: path}
    return {name: dict(sorted(steps.items())) for name, steps in found.items()}


def write_start(runner: Runner, described: dict[str, str] | None = None) -> None:
    """Write ``run.json``: config, recipe, length, data and machine of a run that starts."""
    cfg, loop = runner.cfg, runner.train_loop
    values = flatten(cfg.to_dict(), LOCAL_KEYS)
    recipe, differences = _compare_with_recipe(cfg.text or '', values)
    machine = describe_machine()
    machine.pop('date'), machine.pop('torch')
    versions = {'mmpatchmix': __version__, 'python': platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    about = {
        'started': _now(),
        'command': ' '.join(sys.argv),
        'config_name': Path(cfg.filename).name if cfg.filename else None,
        'recipe': recipe,
        'differences': differences,
        'values': values,
        'max_epochs': loop.max_epochs,
        'max_iters': loop.max_iters,
        'described': described or {},
        'machine': machine | {'ranks': get_world_size(), 'system': platform.platform()},
        'versions': versions,
    }
    write_text(Path(runner.log_dir) / ABOUT, json.dumps(about, indent=1) + '\n')


def write_end(runner: Runner) -> None:
    """Add the time of the end to ``run.json``."""
    path = Path(runner.log_dir) / ABOUT
    about = json.loads(path.read_text(encoding='utf-8')) | {'ended': _now()}
    write_text(path, json.dumps(about, indent=1) + '\n')


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec='seconds')


def _compare_with_recipe(
    text: str, values: dict[str, str]
) -> tuple[str | None, list[tuple[str, str, str]]]:
    """Return the shipped recipe that a config is or inherits, and its differences.

    A difference is key, shipped value and own value. There is no recipe for a config of its own.
    """
    names = {path.resolve(): name for name, path in list_recipes().items()}
    # In mmengine's text the name of each file precedes its contents; base configs come first.
    lines = [line for line in text.splitlines() if line.endswith('.py') and os.path.isfile(line)]
    files = [Path(line).resolve() for line in reversed(lines)]
    file = next((file for file in files if file in names), None)
    if file is None:
        return None, []
    shipped = flatten(Config.fromfile(file).to_dict(), LOCAL_KEYS)
    pairs = {key: (shipped.get(key, ''), values.get(key, '')) for key in {**shipped, **values}}
    return names[file], [(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1]]


def cores_per_process() -> int:
    """Return the cores that each process of this machine may use, at least 1."""
    return max(1, joblib.cpu_count() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def describe_machine() -> dict[str, str | int]:
    """Return processor, cores per process, threads, accelerator, torch version and date."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):  # of Linux only
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        models = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
        processor = models[0] if models else processor
    return {
        'processor': processor,
        'cores': cores_per_process(),
        'threads': torch.get_num_threads(),
        'accelerator': torch.cuda.get_device_name() if torch.cuda.is_available() else 'none',
        'torch': torch.__version__,
        'date': datetime.now().date().isoformat(),
    }
