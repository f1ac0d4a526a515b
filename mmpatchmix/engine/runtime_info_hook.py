"""Brings losses to the host where they are logged, and stops a run that has gone wrong."""

import math

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook, LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """Replace mmengine's ``RuntimeInfoHook``: log losses late, stop at NaN.

    mmengine reads each loss of each iteration on the host, so the host cannot run
    ahead of the device. Here they stay on the device until the log, a checkpoint or
    the end of the epoch wants them; then all of them come in one copy, as means over
    the ranks. Every iteration still has its own entry in the log's history.

    A loss that is NaN or infinite stops the run there: before anything is logged,
    and before a checkpoint is written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: list[tuple[int, int, dict[str, Tensor]]] = []  # iteration, epoch, outputs

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Keep the outputs of the iteration; bring all that is kept to the host when due.

        Raises:
            FloatingPointError: If a loss was not finite.
        """
        # Detached, or the graph of the iteration would live as long.
        values = {name: torch.as_tensor(v).detach() for name, v in (outputs or {}).items()}
        self._pending.append((runner.iter, runner.epoch, values))
        if self._is_due(runner, batch_idx):
            self._bring_to_host(runner)

    def after_train(self, runner: Runner) -> None:
        """Log what is left."""
        self._bring_to_host(runner)
        super().after_train(runner)

    def prepare_checkpoint(self, runner: Runner) -> None:
        """Bring all that is kept to the host, on all ranks, before one saves."""
        self._bring_to_host(runner)

    def _is_due(self, runner: Runner, batch_idx: int) -> bool:
        if self.end_of_epoch(runner.train_dataloader, batch_idx):
            return True
        for hook in runner.hooks:
            if isinstance(hook, LoggerHook) and self.every_n_inner_iters(batch_idx, hook.interval):
                return True
            by_iteration = isinstance(hook, CheckpointHook) and not hook.by_epoch
            if by_iteration and self.every_n_train_iters(runner, hook.interval):
                return True
        return False

    def _bring_to_host(self, runner: Runner) -> None:
        pending, self._pending = self._pending, []
        values = [v.float().mean() for *_, outputs in pending for v in outputs.values()]
        if not values:
            return
        device = next((v.device for v in values if v.device.type != 'cpu'), values[0].device)
        stacked = torch.stack([value.to(device) for value in values])
        dist.all_reduce(stacked, 'mean')
        numbers = iter(stacked.tolist())
        for iteration, epoch, outputs in pending:
            row = {name: next(numbers) for name in outputs}
            stop_on_nan(row, iteration, epoch, runner.work_dir)
            for name, value in row.items():
                runner.message_hub.update_scalar(f'train/{name}', value)


def stop_on_nan(row: dict[str, float], iteration: int, epoch: int, work_dir: str) -> None:
    """Raise ``FloatingPointError`` if a loss of an iteration is NaN or infinite."""
    losses = {name: value for name, value in row.items() if 'loss' in name}
    if all(map(math.isfinite, losses.values())):
        return
    values = ', '.join(f'{name}={value:g}' for name, value in losses.items())
    last = find_latest_checkpoint(work_dir)
    way_back = (
        f'the last good checkpoint is {last} (tools/train.py CONFIG --resume {last})'
        if last
        else 'no checkpoint had been written yet'
    )
    raise FloatingPointError(
        f'the loss is not finite at iteration {iteration + 1} of epoch {epoch + 1}: '
        f'{values}; {way_back}. Usual causes: a learning rate too high for the batch '
        '(see --auto-scale-lr), float16 instead of bfloat16, or damaged images.'
    )
