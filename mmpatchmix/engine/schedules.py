"""Linear learning rate warm-up from 0, and the schedule of the momentum encoder."""

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim.scheduler import LinearLR
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import Runner

from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import HOOKS, PARAM_SCHEDULERS


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
