"""What a run has left in its work dir, read without building or running anything."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpatchmix.engine.work_dir_lock import is_in_use

# Beside the log of every start of a run, see :mod:`mmpatchmix.visualization.run_facts`.
ABOUT = 'run.json'
# Figures about training that may come between its records, under a name of their own.
BESIDES = ('health/', 'probe/')


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        work_dir: Its folder.
        about: What the last start wrote down, see
            :func:`~mmpatchmix.visualization.run_facts.describe_start`; empty where it did not.
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
