"""What a work dir holds: an earlier run, and its checkpoints."""

import os
import shutil
from pathlib import Path

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.compat.safe_loading import find_damage
from mmpatchmix.files import lock_folder


def earlier_run(work_dir: str | Path) -> list[Path]:
    """List files and folders that a run has left in a folder.

    A start that failed before the first figure was logged leaves a folder without figures,
    which is no run.
    """
    work_dir = Path(work_dir)
    found = [path for pattern in ('*.pth', 'last_checkpoint') for path in work_dir.glob(pattern)]
    logs = [path for path in work_dir.glob('*/vis_data/*.json') if path.stat().st_size]
    return found + sorted({path.parents[1] for path in logs})


def clear_earlier_run(work_dir: str | Path) -> None:
    """Remove exactly what :func:`earlier_run` lists."""
    for path in earlier_run(work_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def settle_work_dir(work_dir: str | Path, overwrite: bool) -> None:
    """Keep a new run from burying an earlier one; only the first rank looks.

    Args:
        work_dir: Where the new run will write.
        overwrite: Whether to remove the earlier run.

    Raises:
        ValueError: If there is an earlier run and it is not to be removed, or it is not over.
    """
    if int(os.environ.get('RANK', 0)) != 0:
        return
    lock_folder(work_dir)
    if not earlier_run(work_dir):
        return
    if not overwrite:
        last, _ = find_good_checkpoint(work_dir)
        raise ValueError(
            f'{work_dir} holds an earlier run{f" (last checkpoint: {last})" if last else ""}. '
            'Continue it with --resume, write elsewhere with --work-dir DIR, or replace it with '
            '--overwrite.'
        )
    clear_earlier_run(work_dir)


def find_checkpoint(path: str) -> str:
    """Return the checkpoint itself, or the last one of a work dir.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the named one is damaged.
    """
    if Path(path).is_dir():
        last, damaged = find_good_checkpoint(path)
        for each, damage in damaged.items():
            print(f'{each} is damaged ({damage}) and passed over')
        if last is None:
            raise FileNotFoundError(f'there is no good checkpoint in {path}; train first.')
        return str(last)
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}.')
    if damage := find_damage(path):
        raise ValueError(f'{path} cannot be read: it is damaged ({damage})')
    return path
