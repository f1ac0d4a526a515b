"""Stops a run whose loss is no longer a number, instead of training on."""

import math

from mmengine.hooks import Hook
from mmengine.runner import find_latest_checkpoint

from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stop at the first NaN or infinite loss, before the next checkpoint is written.

    It runs after the hook that logs the losses and reads what that one brought to
    the host, so it adds neither a copy from the device nor a synchronisation.
    """

    priority = 'ABOVE_NORMAL'

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Raise ``FloatingPointError`` if a loss of this iteration is not finite."""
        logged = runner.message_hub
        names = [name for name in outputs or {} if 'loss' in name]
        losses = {name: float(logged.get_scalar(f'train/{name}').current()) for name in names}
        if all(map(math.isfinite, losses.values())):
            return
        values = ', '.join(f'{name}={value:g}' for name, value in losses.items())
        last = find_latest_checkpoint(runner.work_dir)
        way_back = (
            f'the last good checkpoint is {last} (tools/train.py CONFIG --resume {last})'
            if last
            else 'no checkpoint had been written yet'
        )
        raise FloatingPointError(
            f'the loss is not finite at iteration {runner.iter + 1} of epoch {runner.epoch + 1}: '
            f'{values}; {way_back}. Usual causes: a learning rate too high for the batch '
            '(see --auto-scale-lr), float16 instead of bfloat16, or damaged images.'
        )
