"""What a run has left in its work dir, read without building or running anything."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import Runner

from mmpatchmix import __version__
from mmpatchmix.files import is_in_use, write_text

# Beside the log of every start of a run, see :mod:`mmpatchmix.report.run_record`.
ABOUT = 'run.json'

# Figures about training that may come between its records, under a name of their own.
BESIDES = ('health/', 'probe/')


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        work_dir: Its folder.
        about: What the last start wrote down, see
            :func:`~mmpatchmix.report.run_record.describe_start`; empty where it did not.
        config: Text of the whole config.
        num_starts: How often it was started.
        in_use: Whether a process holds the work dir.
        training: Records with ``iter``, in order.
        validation: Records with ``step``, an epoch, in order.
        warnings: Of its health: ``iter``, ``epoch``, ``name``, ``message`` and ``hint``.
        judgement: The figures of ``mmpatchmix evaluate``.
        pictures: Files by name and step, each name from its first to its last step.
    """

    work_dir: Path
    about: dict[str, Any]
    config: str
    num_starts: int
    in_use: bool
    training: list[dict]
    validation: list[dict]
    warnings: list[dict]
    judgement: dict[str, float]
    pictures: dict[str, dict[int, Path]]

    @property
    def state(self) -> str:
        """Say whether the run is over."""
        if self.about.get('ended'):
            return 'finished'
        return 'going on' if self.in_use else 'not finished'

    @property
    def epochs_per_iter(self) -> float | None:
        """Return how much of an epoch an iteration is; None where epochs are not counted."""
        last = self.training[-1] if self.training else {}
        return last['epoch'] / last['iter'] if last.get('epoch') and last.get('iter') else None


def read_run(work_dir: str | Path) -> RunRecord:
    """Read what is in a work dir, also while the run goes on.

    Raises:
        FileNotFoundError: If no run has logged anything there.
    """
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
        warnings=[record for path in health for record in read_lines(path)],
        judgement=_read_json(work_dir / 'evaluation' / 'evaluation.json').get('metrics') or {},
        pictures=find_pictures(work_dir),
    )


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read the scalars of a run, also of one that was resumed several times.

    Args:
        work_dir: Folder that mmengine wrote ``*/vis_data/scalars.json`` into.

    Returns:
        Training records with ``iter`` and ``epoch``, and validation records with ``step`` (an
        epoch), each in order. Where a resumed run repeated a step, its later record counts.
    """
    training: dict[int, dict] = {}
    validation: dict[int, dict] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for record in read_lines(path):
            named = [name for name in record if '/' in name]
            if 'loss' in record:
                training[record['iter']] = record
            elif named and all(name.startswith(BESIDES) for name in named):
                step = record.get('iter', record.get('step'))
                training[step] = {'iter': step} | training.get(step, {}) | record
            elif named:
                # Several write: the loop of the evaluation, the guard.
                validation[record['step']] = validation.get(record['step'], {}) | record
    return (
        [training[step] for step in sorted(training)],
        [validation[step] for step in sorted(validation)],
    )


def read_lines(path: Path) -> list[dict]:
    """Read a file of JSON lines; a line that was cut off or is no record is left out."""
    records = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed while writing it
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def find_pictures(work_dir: Path) -> dict[str, dict[int, Path]]:
    """Find what the visualizer has saved as ``NAME_STEP.png``, and two pictures of other names."""
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


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):  # not there, or being written
        return {}
    return content if isinstance(content, dict) else {}


PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'timm', 'numpy')

# Keys that tell where a run was, not what it was.
PLACES = ('work_dir', 'launcher', 'experiment_name')


def write_start(runner: Runner, described: dict[str, str] | None = None) -> None:
    """Write the description of a run that starts beside its log."""
    _write(runner, describe_start(runner) | {'described': described or {}})


def write_end(runner: Runner) -> None:
    """Add when the run ended."""
    path = Path(runner.log_dir) / ABOUT
    about = json.loads(path.read_text(encoding='utf-8'))
    _write(runner, about | {'ended': _now()})


def describe_start(runner: Runner) -> dict[str, Any]:
    """Describe a run that starts: config, recipe, length, data, machine."""
    # Here, not above: the command line imports what is above.

    cfg, loop = runner.cfg, runner.train_loop
    values = flatten(cfg.to_dict())
    recipe, differences = compare_with_recipe(cfg.text or '', values)
    machine = describe_machine()
    machine.pop('date'), machine.pop('torch')
    machine |= {'ranks': get_world_size(), 'system': platform.platform()}
    return {
        'started': _now(),
        'command': ' '.join(sys.argv),
        'config_name': Path(cfg.filename).name if cfg.filename else None,
        'recipe': recipe,
        'differences': differences,
        'values': values,
        'max_epochs': loop.max_epochs,
        'max_iters': loop.max_iters,
        'machine': machine,
        'versions': {'mmpatchmix': __version__, 'python': platform.python_version()} | _versions(),
    }


def compare_with_recipe(
    text: str, values: dict[str, str]
) -> tuple[str | None, list[tuple[str, str, str]]]:
    """Find the shipped recipe that a config is or inherits from, and what was changed of it.

    Args:
        text: Of the config, as mmengine keeps it: each file's name before what is in it.
        values: Of the config, from :func:`flatten`.

    Returns:
        tuple: Name of the recipe, None where there is none; and key, shipped value and own
        value of each difference, empty for what is not there.
    """
    from mmpatchmix.files import list_recipes

    names = {path.resolve(): name for name, path in list_recipes().items()}
    lines = [line for line in text.splitlines() if line.endswith('.py') and os.path.isfile(line)]
    # What a config inherits from comes before it.
    files = [Path(line).resolve() for line in reversed(lines)]
    file = next((file for file in files if file in names), None)
    if file is None:
        return None, []
    shipped = flatten(Config.fromfile(file).to_dict())
    keys = [*shipped, *(key for key in values if key not in shipped)]
    return names[file], [
        (key, shipped.get(key, ''), values.get(key, ''))
        for key in keys
        if shipped.get(key) != values.get(key)
    ]


def flatten(node: Any, prefix: str = '') -> dict[str, str]:
    """Return the values below a node by their dotted keys, as Python writes them."""
    if isinstance(node, dict) and node:
        parts = node.items()
    elif isinstance(node, list | tuple) and any(isinstance(part, dict) for part in node):
        parts = enumerate(node)
    else:
        return {prefix: repr(list(node) if isinstance(node, tuple) else node)}
    flat: dict[str, str] = {}
    for key, value in parts:
        if key not in PLACES:
            flat |= flatten(value, f'{prefix}.{key}' if prefix else str(key))
    return flat


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        for distribution in (f'onedl-{name}', 'onedl-mmdetection' if name == 'mmdet' else name):
            try:
                found.setdefault(name, version(distribution))
            except PackageNotFoundError:
                continue
    return found


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec='seconds')


def _write(runner: Runner, about: dict[str, Any]) -> None:
    write_text(Path(runner.log_dir) / ABOUT, json.dumps(about, indent=1) + '\n')


def cores_per_process() -> int:
    """Cores that each process of this machine may use, at least 1."""
    # macOS has no sched_getaffinity.
    cores = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count() or 1))(0)
    return max(1, len(cores) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def describe_machine() -> dict[str, str | int]:
    """Processor, cores per process, threads, accelerator, versions and date."""
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
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
