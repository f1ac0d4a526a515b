"""Linear warm-up that really starts from 0."""

from mmengine.optim.scheduler import LinearLR
from mmengine.optim.scheduler.param_scheduler import INF

from mmpatchmix.registry import PARAM_SCHEDULERS


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
