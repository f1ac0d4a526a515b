"""Which file a run begins with."""

import os
from pathlib import Path

from mmengine.runner import Runner

from mmpatchmix.checkpoints.sealing import find_damage, find_good_checkpoint
from mmpatchmix.models import unwrap_model
from mmpatchmix.models.vit import find_pretrained


def find_start(runner: Runner) -> str | None:
    """Return the file whose weights a run starts or started from; None for random weights."""
    backbone = getattr(unwrap_model(runner.model), 'backbone', None)
    pretrained = find_pretrained(getattr(backbone, 'init_cfg', None)) or {}
    return pretrained.get('checkpoint') or (None if runner._resume else runner._load_from)


def choose_checkpoint(runner: Runner) -> str | None:
    """Return the file to load, verified."""
    named = runner._load_from
    if named is not None:
        damage = find_damage(named) if os.path.isfile(named) else None
        if damage is None:
            return named
        good, _ = find_good_checkpoint(Path(named).parent)
        way_on = f' A good one is {good}.' if good else ''
        raise ValueError(f'{named} cannot be read: it is damaged ({damage}).{way_on}')
    if not runner._resume:
        return None
    good, damaged = find_good_checkpoint(runner.work_dir)
    listed = ''.join(f'\n  {path}: {damage}' for path, damage in damaged.items())
    if damaged and good is None:
        raise ValueError(f'every checkpoint of {runner.work_dir} is damaged:{listed}')
    if damaged:
        runner.logger.warning(f'Damaged checkpoints are passed over:{listed}')
    elif good is not None and not Path(runner.work_dir, 'last_checkpoint').is_file():
        runner.logger.warning(f'last_checkpoint is missing; {good} is the newest good one.')
    return good and str(good)
