"""What a run was meant to be, compared on resuming, and planned anew where that is wished."""

import copy
import math
import warnings
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import Runner

from mmpatchmix.models import unwrap_model


def describe_plan(runner: Runner) -> dict[str, str]:
    """Describe length, batch, schedules and mixing of a run whose optimizer is built.

    Returns:
        dict[str, str]: What must not change on resuming, in words.
    """
    loader, cfg = runner.train_dataloader, runner.cfg
    optimizer = dict((cfg.get('optim_wrapper') or {}).get('optimizer') or {})
    optimizer.pop('lr', None)
    momentum = (cfg.get('default_hooks') or {}).get('momentum') or {}
    plan = {
        'epochs': runner.max_epochs,
        'images': len(loader.dataset),
        'batch over all ranks': global_batch(runner),
        'accumulated batches': getattr(runner.optim_wrapper, '_accumulative_counts', 1),
        'iterations per epoch': len(loader),
        'learning rate': max(_start_rates(runner), default=0.0),
        'optimizer': _in_words(optimizer),
        'schedules': '; '.join(_in_words(dict(s)) for s in cfg.get('param_scheduler') or []),
        'momentum': _in_words({k: momentum.get(k) for k in ('momentum', 'end_momentum')}),
    }
    preprocessor = getattr(unwrap_model(runner.model), 'data_preprocessor', None)
    if hasattr(preprocessor, 'num_mix_choices'):
        plan['mixing'] = (
            f'num_mix {preprocessor.num_mix_choices}, patches of {preprocessor.patch_size}, '
            f'probability {preprocessor.mix_prob:g}, {preprocessor.mixing or "PatchMix"}'
        )
    return {
        name: f'{value:g}' if isinstance(value, float) else str(value)
        for name, value in plan.items()
    }


def global_batch(runner: Runner) -> int:
    """Return the number of images of an iteration, over all ranks."""
    loader = runner.train_dataloader
    return (loader.batch_size or loader.batch_sampler.batch_size) * get_world_size()


def compare_plans(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return one line for each difference between two plans."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f'{name}: {before.get(name, "nothing")} in the checkpoint, {now.get(name, "nothing")} now'
        for name in names
        if before.get(name) != now.get(name)
    ]


def remember_schedules(runner: Runner) -> dict[str, Any]:
    """Copy what the optimizer and its schedules start from, for :func:`replan`."""
    groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != 'params'}
        for group in runner.optim_wrapper.optimizer.param_groups
    ]
    return {'groups': groups, 'schedulers': [s.state_dict() for s in _schedulers(runner)]}


def replan(runner: Runner, start: dict[str, Any], before: dict[str, str]) -> None:
    """Put the schedules where the new plan has them at this point of the run.

    A change of the batch keeps the epoch. Within it training goes on at the next whole batch
    of the new size; what lies in between is left out.

    Args:
        runner: A resumed Runner.
        start: What :func:`remember_schedules` returned before resuming.
        before: The plan in the checkpoint.
    """
    loop = runner.train_loop
    position = loop._iter - loop._epoch * int(before['iterations per epoch'])
    consumed = position * int(before['batch over all ranks'])
    position = min(math.ceil(consumed / global_batch(runner)), len(loop.dataloader))
    loop._iter = loop._epoch * len(loop.dataloader) + position
    optimizer = runner.optim_wrapper.optimizer
    for group, fresh in zip(optimizer.param_groups, start['groups'], strict=True):
        group.update(copy.deepcopy(fresh))
    schedulers = [s for s in _schedulers(runner) if not getattr(s, 'need_val_args', False)]
    for scheduler, state in zip(_schedulers(runner), start['schedulers'], strict=True):
        if scheduler in schedulers:
            scheduler.load_state_dict(copy.deepcopy(state))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the optimizer has not stepped in between
        for iteration in range(1, loop._iter + 1):
            epoch, rest = divmod(iteration, len(loop.dataloader))
            for scheduler in schedulers:
                if not scheduler.by_epoch or (rest == 0 and epoch <= loop._epoch):
                    scheduler.step()
    runner.optim_wrapper.initialize_count_status(runner.model, loop._iter, loop.max_iters)


def _schedulers(runner: Runner) -> list:
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):  # of several optimizers
        return [scheduler for each in schedulers.values() for scheduler in each]
    return list(schedulers)


def _start_rates(runner: Runner) -> list[float]:
    groups = getattr(runner.optim_wrapper, 'optimizer', None)
    groups = [] if groups is None else groups.param_groups
    return [float(group.get('initial_lr', group['lr'])) for group in groups]


def _in_words(settings: dict) -> str:
    return ', '.join(f'{key} {settings[key]}' for key in sorted(settings, key=str))
