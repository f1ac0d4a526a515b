"""The plan of a run (start, length, batch, schedules): describe, compare, change on resuming."""

import math
import re
import warnings

from mmengine.dist import get_world_size
from mmengine.runner import Runner

from mmpatchmix.engine.schedules import leave_out_short
from mmpatchmix.models import unwrap_model
from mmpatchmix.models.vit import find_pretrained

# Entries of a plan that may change on resuming; of schedules only what LENGTHS matches.
CHANGEABLE = ('epochs', 'batch over all ranks', 'accumulated batches', 'iterations per epoch')
LENGTHS = re.compile(r'\b(begin|end|T_max|step_size|milestones) (\[.*?\]|[^,;]+)')


def describe_plan(runner: Runner) -> dict[str, str]:
    """Return everything that must not change on resuming, as text, of a built Runner."""
    loader, cfg = runner.train_dataloader, runner.cfg
    optimizer = dict((cfg.get('optim_wrapper') or {}).get('optimizer') or {})
    optimizer.pop('lr', None)
    groups = getattr(getattr(runner.optim_wrapper, 'optimizer', None), 'param_groups', [])
    momentum = (cfg.get('default_hooks') or {}).get('momentum') or {}
    plan = {
        'epochs': runner.max_epochs,
        'images': len(loader.dataset),
        'batch over all ranks': global_batch(runner),
        'accumulated batches': getattr(runner.optim_wrapper, '_accumulative_counts', 1),
        'iterations per epoch': len(loader),
        'learning rate': max((float(g.get('initial_lr', g['lr'])) for g in groups), default=0.0),
        'optimizer': _format_settings(optimizer),
        'schedules': '; '.join(_format_settings(dict(s)) for s in cfg.get('param_scheduler') or []),
        'momentum': _format_settings({k: momentum.get(k) for k in ('momentum', 'end_momentum')}),
    }
    preprocessor = getattr(unwrap_model(runner.model), 'data_preprocessor', None)
    if hasattr(preprocessor, 'num_mix_choices'):
        plan['mixing'] = (
            f'num_mix {preprocessor.num_mix_choices}, patches of {preprocessor.patch_size}, '
            f'probability {preprocessor.mix_prob:g}, {preprocessor.mixing or "PatchMix"}'
            + (f', shares of alpha {preprocessor.alpha:g}' if preprocessor.alpha else '')
        )
    return {k: f'{v:g}' if isinstance(v, float) else str(v) for k, v in plan.items()}


def _format_settings(settings: dict) -> str:
    return ', '.join(f'{key} {settings[key]}' for key in sorted(settings, key=str))


def global_batch(runner: Runner) -> int:
    """Return the number of images of an iteration, over all ranks."""
    loader = runner.train_dataloader  # one of mmdet, with a batch sampler, has no batch size itself
    return (loader.batch_size or loader.batch_sampler.batch_size) * get_world_size()


def find_start(runner: Runner) -> str | None:
    """Return the file whose weights a run starts from, or started from; None for random weights."""
    backbone = getattr(unwrap_model(runner.model), 'backbone', None)
    pretrained = find_pretrained(getattr(backbone, 'init_cfg', None)) or {}
    return pretrained.get('checkpoint') or (None if runner._resume else runner._load_from)


def compare_plans(before: dict[str, str], now: dict[str, str]) -> tuple[list[str], bool]:
    """Return a line for each difference, and whether only length and batch differ."""
    names = [name for name in before | now if before.get(name) != now.get(name)]
    lines = [
        f'{name}: {before.get(name, "nothing")} in the checkpoint, {now.get(name, "nothing")} now'
        for name in names
    ]
    schedules = [LENGTHS.sub('', plan.get('schedules', '')) for plan in (before, now)]
    allowed = (*CHANGEABLE, 'schedules') if schedules[0] == schedules[1] else CHANGEABLE
    return lines, set(names) <= set(allowed)


def replan(runner: Runner, before: dict[str, str]) -> None:
    """Move a resumed run to its position in schedules of another length or batch.

    A change of the batch size keeps the epoch. Training continues at the next whole batch of the
    new size; samples in between are skipped. ``before`` is the plan in the checkpoint.
    """
    loop, wrapper = runner.train_loop, runner.optim_wrapper
    position = loop._iter - loop._epoch * int(before['iterations per epoch'])
    consumed = position * int(before['batch over all ranks'])
    position = min(math.ceil(consumed / global_batch(runner)), len(loop.dataloader))
    loop._iter = loop._epoch * len(loop.dataloader) + position
    for group in wrapper.param_groups:  # also the base settings, which are logged as base_lr
        for name in [name for name in group if name.startswith('initial_')]:
            group[name.removeprefix('initial_')] = group[name]
    schedules = leave_out_short(runner.cfg.param_scheduler, len(loop.dataloader))
    runner.param_schedulers = runner.build_param_scheduler(schedules)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer does not step in between
        for iteration in range(1, loop._iter + 1):
            epoch, rest = divmod(iteration, len(loop.dataloader))
            for scheduler in runner.param_schedulers:
                if not scheduler.by_epoch or (rest == 0 and epoch <= loop._epoch):
                    scheduler.step()
    wrapper.initialize_count_status(runner.model, loop._iter, loop.max_iters)
