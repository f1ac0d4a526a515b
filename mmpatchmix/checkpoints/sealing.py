"""Digests of checkpoint files, and the undamaged checkpoints of a work dir.

The comment of a sealed torch file, a zip archive, is the SHA-256 of all bytes before it, which
:func:`mmpatchmix.compat.file_kinds.find_damage` verifies.
"""

import os
import re
import struct
from pathlib import Path

from mmengine.runner import Runner

from mmpatchmix.compat.file_kinds import LENGTH, MARK, digest, find_damage
from mmpatchmix.compat.safe_loading import load_torch


def seal(path: str | Path) -> None:
    """Append the digest to a torch file without a comment, and synchronise it with the disk."""
    with open(path, 'rb+') as file:
        comment = MARK + digest(file, os.path.getsize(path) - 2)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack('<H', LENGTH) + comment)
        file.flush()
        os.fsync(file.fileno())


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a work dir to resume from, newest first.

    ``last_checkpoint`` names the newest, since copies of a folder need not keep times. A run that
    was killed before it wrote ``last_checkpoint`` has a later file with more iterations.
    """
    folder = Path(folder)
    found = [p for p in folder.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+\.pth', p.name)]
    found.sort(key=_time, reverse=True)
    try:
        last = Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip())
    except (OSError, UnicodeDecodeError):
        return found
    for path in (last, folder / last.name):  # the work dir may have been moved
        if path.is_file():
            others = [other for other in found if other.resolve() != path.resolve()]
            late = [other for other in others if _time(other) > _time(path)]
            late = [other for other in late if _count_iterations(other) > _count_iterations(path)]
            return [*late, path, *(other for other in others if other not in late)]
    return found


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _count_iterations(path: Path) -> float:
    """Return the number of iterations before a checkpoint; infinity for a damaged one."""
    try:
        return load_torch(path)['meta']['iter']
    except (ValueError, KeyError, TypeError):
        return float('inf')


def find_good_checkpoint(folder: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the first undamaged of :func:`find_checkpoints`, and the damage of those before it."""
    damaged = {}
    for path in find_checkpoints(folder):
        if (damage := find_damage(path)) is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def choose_checkpoint(runner: Runner) -> str | None:
    """Return the verified checkpoint that a Runner is to load, or None; refuse damaged ones."""
    named = runner._load_from
    if named and os.path.isfile(named) and (damage := find_damage(named)):
        good, _ = find_good_checkpoint(Path(named).parent)
        hint = f' {good} is a good one.' if good else ''
        raise ValueError(f'{named} cannot be read: it is damaged ({damage}).{hint}')
    if named or not runner._resume:
        return named
    good, damaged = find_good_checkpoint(runner.work_dir)
    listed = ''.join(f'\n  {path}: {damage}' for path, damage in damaged.items())
    if damaged and good is None:
        raise ValueError(f'every checkpoint of {runner.work_dir} is damaged:{listed}')
    if damaged:
        runner.logger.warning(f'Skipped damaged checkpoints:{listed}')
    elif good is not None and not Path(runner.work_dir, 'last_checkpoint').is_file():
        runner.logger.warning(f'last_checkpoint is missing; {good} is the newest good one.')
    return good and str(good)
