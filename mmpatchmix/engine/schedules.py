"""Linear warm-up that really starts from 0."""

import math

from mmengine.hooks import Hook
from mmengine.optim.scheduler import LinearLR
from mmengine.optim.scheduler.param_scheduler import INF

from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import HOOKS, PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class LinearWarmupLR(LinearLR):
    """lr = base * i / (W - 1) at iteration ``i`` of ``W`` warm-up iterations.

    mmengine's LinearLR multiplies the previous value, so it cannot leave 0
    (``start_factor=0`` divides by zero). Here the value comes from the base.

    A warm-up of less than one iteration, in a run cut very short, is none.

    Args:
        optimizer: As in mmengine.
        begin: First iteration (or epoch, with ``by_epoch``).
        end: The iteration after the last.
        **kwargs: ``by_epoch``, ``convert_to_iter_based`` ...
    """

    def __init__(self, optimizer, begin: float = 0, end: float = INF, **kwargs) -> None:
        super().__init__(
            optimizer,
            start_factor=0.0,
            end_factor=1.0,
            begin=begin,
            end=max(end, begin + 1),
            **kwargs,
        )

    def _get_value(self) -> list[float]:
        factor = self.last_step / self.total_iters if self.total_iters > 0 else 1.0
        return [base * factor for base in self.base_values]


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
