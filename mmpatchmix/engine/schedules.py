"""Schedules of learning rate and momentum encoder, and the plan of a run that resuming compares.

The plan is length, batch, optimizer, schedules, mixing, loss and normalisation.
"""

import json
import math
import re
import warnings
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim.scheduler import LinearLR
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import Runner

from mmpatchmix.models import unwrap_model
from mmpatchmix.models.vit import find_pretrained
from mmpatchmix.registry import HOOKS, PARAM_SCHEDULERS

LOSS_SETTINGS = ('temperature', 'mix_temperature', 'label_smoothing', 'loss_weights')
# Entries of a plan that may change on resuming; of schedules only what LENGTHS matches.
CHANGEABLE = ('epochs', 'batch over all ranks', 'accumulated batches', 'iterations per epoch')
LENGTHS = re.compile(r'\b(begin|end|T_max|step_size|milestones) (\[.*?\]|[^,;]+)')


@PARAM_SCHEDULERS.register_module()
class LinearWarmupLR(LinearLR):
    """lr = base * i / (W - 1) at iteration ``i`` of ``W`` warm-up iterations.

    mmengine's ``LinearLR``, whose other arguments these are, multiplies the previous value and
    therefore cannot start at 0. A warm-up shorter than one iteration has no effect.
    """

    def __init__(self, optimizer, begin: float = 0, end: float = INF, **kwargs) -> None:
        end = max(end, begin + 1)
        super().__init__(optimizer, 0.0, 1.0, begin=begin, end=end, **kwargs)

    def _get_value(self) -> list[float]:
        factor = self.last_step / self.total_iters if self.total_iters > 0 else 1.0
        return [base * factor for base in self.base_values]


def leave_out_short(schedules: Any, num_iters: int) -> Any:
    """Return those of a list that take an iteration or more; mmengine refuses the others."""
    if not isinstance(schedules, list):
        return schedules
    kept = []
    for schedule in schedules:
        begin, end = schedule.get('begin', 0), schedule.get('end', INF)
        is_short = begin < end and int(begin * num_iters) == int(end * num_iters)
        if schedule.get('convert_to_iter_based') and is_short:
            name = f'{schedule["type"]} from epoch {begin:g} to {end:g}'
            print_log(f'{name} is shorter than an iteration and left out', 'current')
        else:
            kept.append(schedule)
    return kept


def cosine_momentum(step: int, num_steps: int, start: float = 0.996, end: float = 1.0) -> float:
    """Return ``m = end - (end - start) * (1 + cos(pi * step / num_steps)) / 2``.

    ``m`` is the share of the momentum encoder kept at optimizer step ``step``, from 0.
    """
    return end - (end - start) * (1 + math.cos(math.pi * step / num_steps)) / 2


@HOOKS.register_module()
class MomentumScheduleHook(Hook):
    """Update the momentum encoder before the forward of every optimizer step.

    The cosine schedule covers all optimizer steps of the run, also across resuming. The shares
    kept, ``momentum`` at the first step and ``end_momentum`` at the end, are in [0, 1].
    """

    priority = 'HIGH'

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0) -> None:
        for name, share in (('momentum', momentum), ('end_momentum', end_momentum)):
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                advice = 'the paper goes from 0.996 to 1.'
                raise ValueError(f'{name}={share} must be in [0, 1]; {advice}')
        self.momentum, self.end_momentum = momentum, end_momentum

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Update the momentum encoder in the first iteration of an optimizer step."""
        model = unwrap_model(runner.model)
        accumulation = runner.optim_wrapper._accumulative_counts
        if getattr(model, 'momentum_encoder', None) is None or runner.iter % accumulation:
            return
        step, num_steps = runner.iter // accumulation, math.ceil(runner.max_iters / accumulation)
        momentum = cosine_momentum(step, num_steps, self.momentum, self.end_momentum)
        model.update_momentum_encoder(momentum)
        runner.message_hub.update_scalar('train/momentum', momentum)


def describe_plan(runner: Runner) -> dict[str, str]:
    """Return what resuming compares, as text, of a built Runner."""
    loader, cfg = runner.train_dataloader, runner.cfg
    wrapper = cfg.get('optim_wrapper') or {}
    own = {name: wrapper.get(name) for name in ('constructor', 'paramwise_cfg')}
    optimizer = dict(wrapper.get('optimizer') or {})
    optimizer.pop('lr', None)
    groups = getattr(getattr(runner.optim_wrapper, 'optimizer', None), 'param_groups', [])
    momentum = (cfg.get('default_hooks') or {}).get('momentum') or {}
    schedules = cfg.get('param_scheduler') or []
    schedules = [schedules] if isinstance(schedules, dict) else schedules
    plan = {
        'epochs': runner.max_epochs,
        'images': len(loader.dataset),
        'batch over all ranks': global_batch(runner),
        'accumulated batches': getattr(runner.optim_wrapper, '_accumulative_counts', 1),
        'iterations per epoch': len(loader),
        'learning rate': max((float(g.get('initial_lr', g['lr'])) for g in groups), default=0.0),
        'optimizer': _format_settings(optimizer),
        'parameter groups': json.dumps(own, sort_keys=True, default=str),
        'schedules': '; '.join(_format_settings(dict(each)) for each in schedules),
        'momentum': _format_settings({k: momentum.get(k) for k in ('momentum', 'end_momentum')}),
    }
    model = unwrap_model(runner.model)
    preprocessor = getattr(model, 'data_preprocessor', None)
    if hasattr(preprocessor, 'num_mix_choices'):
        plan['mixing'] = (
            f'num_mix {preprocessor.num_mix_choices}, patches of {preprocessor.patch_size}, '
            f'probability {preprocessor.mix_prob:g}, {preprocessor.mixing or "PatchMix"}'
            + (f', shares of alpha {preprocessor.alpha:g}' if preprocessor.alpha else '')
        )
        parts = vars(model) | vars(model.head)
        plan['loss'] = _format_settings({name: parts.get(name) for name in LOSS_SETTINGS})
        steps = cfg.train_dataloader.dataset.get('pipeline') or []
        plan['values'] = [step['value_range'] for step in steps if 'value_range' in step]
    for name in ('mean', 'std'):  # of the images
        if hasattr(preprocessor, name):
            values = getattr(preprocessor, name).flatten().tolist()
            plan[name] = ', '.join(f'{value:g}' for value in values)
    return {k: f'{v:g}' if isinstance(v, float) else str(v) for k, v in plan.items()}


def _format_settings(settings: dict) -> str:
    return ', '.join(f'{key} {settings[key]}' for key in sorted(settings, key=str))


def global_batch(runner: Runner) -> int:
    """Return the number of images of an iteration, over all ranks."""
    loader = runner.train_dataloader  # one of mmdet, with a batch sampler, has no batch size itself
    return (loader.batch_size or loader.batch_sampler.batch_size) * get_world_size()


def find_start(runner: Runner) -> str | None:
    """Return the file whose weights a run starts from; of a resumed run, only of ``init_cfg``."""
    backbone = getattr(unwrap_model(runner.model), 'backbone', None)
    pretrained = find_pretrained(getattr(backbone, 'init_cfg', None)) or {}
    return pretrained.get('checkpoint') or (None if runner._resume else runner._load_from)


def compare_plans(before: dict[str, str], now: dict[str, str]) -> tuple[list[str], bool]:
    """Return a line for each difference, and whether only length and batch differ."""
    names = [name for name in before if before[name] != now.get(name)]
    lines = [f'{n}: {before[n]} in the checkpoint, {now.get(n, "nothing")} now' for n in names]
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
