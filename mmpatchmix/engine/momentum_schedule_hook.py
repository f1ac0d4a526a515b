"""Moves the momentum encoder once per optimizer step, on its cosine schedule."""

import math

from mmengine.hooks import Hook

from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import HOOKS


def cosine_momentum(step: int, num_steps: int, start: float = 0.996, end: float = 1.0) -> float:
    """Compute the share of the momentum encoder that is kept at a step.

    ``m = end - (end - start) * (1 + cos(pi * step / num_steps)) / 2``

    Args:
        step: Optimizer steps taken so far, from 0.
        num_steps: Optimizer steps of the whole run.
        start: ``m`` at step 0.
        end: ``m`` at step ``num_steps``.

    Returns:
        float: ``m``.
    """
    return end - (end - start) * (1 + math.cos(math.pi * step / num_steps)) / 2


@HOOKS.register_module()
class MomentumScheduleHook(Hook):
    """Update the momentum encoder before the forward of every optimizer step.

    The schedule runs over the iterations of the run, so it continues where it
    was on resuming; with gradient accumulation it counts optimizer steps. A
    model without a momentum encoder is left alone.

    Args:
        momentum: Share kept at the first step, in [0, 1].
        end_momentum: Share kept at the end of the run, in [0, 1].

    Raises:
        ValueError: If a share is out of range.
    """

    priority = 'HIGH'

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0) -> None:
        for name, share in (('momentum', momentum), ('end_momentum', end_momentum)):
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(
                    f'{name}={share} is the share kept and must be in [0, 1]; '
                    'the paper goes from 0.996 to 1.'
                )
        self.momentum = momentum
        self.end_momentum = end_momentum

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Update, if this iteration begins an optimizer step."""
        model = unwrap_model(runner.model)
        if getattr(model, 'momentum_encoder', None) is None:
            return
        accumulation = runner.optim_wrapper._accumulative_counts
        if runner.iter % accumulation:
            return
        momentum = cosine_momentum(
            runner.iter // accumulation,
            math.ceil(runner.max_iters / accumulation),
            self.momentum,
            self.end_momentum,
        )
        model.update_momentum_encoder(momentum)
        runner.message_hub.update_scalar('train/momentum', momentum)
