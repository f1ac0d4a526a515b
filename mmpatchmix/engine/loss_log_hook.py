"""Brings losses to the host where they are logged, and stops a run that has gone wrong."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook, LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner
from torch import Tensor

from mmpatchmix.checkpoints.sealing import find_good_checkpoint, seal
from mmpatchmix.engine.exact_order import ExactTrainLoop, find_sampler, read_random_states
from mmpatchmix.engine.exact_resume import to_plain
from mmpatchmix.files import move_into_place
from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import HOOKS

BROKEN = 'broken'  # among the outputs kept: whether the optimizer has stopped to step

# Iterations whose figures stay in memory. mmengine copies all of them for each new one: at the end
# of a run of 375,000 iterations that takes longer than many a step.
HISTORY = 2000


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """Replace mmengine's ``RuntimeInfoHook``: log losses late, stop at NaN.

    mmengine reads each loss of each iteration on the host, so the host cannot run
    ahead of the device. Here they stay on the device until the log, a checkpoint or
    the end of the epoch wants them; then all of them come in one copy, as means over
    the ranks. Every iteration still has its own entry in the log's history, which keeps the last
    2,000 or an epoch (all of them where ``log_processor.custom_cfg`` may ask for them).

    A loss or gradient that is NaN or infinite stops the run there: before anything is logged,
    and before a checkpoint is written. What the step was made of goes into a file for
    ``mmpatchmix replay``, see :func:`~mmpatchmix.engine.loss_log_hook.write_capsule`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: list[tuple[int, int, dict[str, Tensor], dict]] = []
        self._states: dict = {}  # random states at the beginning of the iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Tell iteration and learning rates, and note down the random states."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if hasattr(runner.optim_wrapper, 'broken'):  # else no step can be repeated
            self._states = read_random_states()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Keep the outputs of the iteration; bring all that is kept to the host when due.

        Raises:
            FloatingPointError: If a loss or a gradient was not finite.
        """
        # Detached, or the graph of the iteration would live as long.
        values = {name: torch.as_tensor(v).detach() for name, v in (outputs or {}).items()}
        if (broken := getattr(runner.optim_wrapper, 'broken', None)) is not None:
            values[BROKEN] = broken
        if (norm := getattr(runner.optim_wrapper, 'grad_norm', None)) is not None:
            values['grad_norm'] = norm
        self._pending.append((runner.iter, runner.epoch, values, self._states))
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
        if dist.get_world_size() == 1 and self._lie_on_host(self._pending[-1][2]):
            return True  # neither a device to wait for nor other ranks
        if self.end_of_epoch(runner.train_dataloader, batch_idx):
            return True
        for hook in runner.hooks:
            if isinstance(hook, LoggerHook) and self.every_n_inner_iters(batch_idx, hook.interval):
                return True
            by_iteration = isinstance(hook, CheckpointHook) and not hook.by_epoch
            if by_iteration and self.every_n_train_iters(runner, hook.interval):
                return True
        return False

    @staticmethod
    def _lie_on_host(outputs: dict[str, Tensor]) -> bool:
        return all(value.device.type == 'cpu' for value in outputs.values())

    def _bring_to_host(self, runner: Runner) -> None:
        pending, self._pending = self._pending, []
        values = [value for _, _, outputs, _ in pending for value in outputs.values()]
        if not values:
            return
        stacked = stack_numbers(values)
        dist.all_reduce(stacked, 'mean')
        numbers = iter(stacked.tolist())
        for iteration, epoch, outputs, states in pending:
            row = {name: next(numbers) for name in outputs}
            losses = {name: value for name, value in row.items() if 'loss' in name}
            if row.pop(BROKEN, 0) or not all(map(math.isfinite, losses.values())):
                own = {name: float(_average(outputs[name])) for name in losses}
                _stop(
                    runner, iteration, epoch, losses, write_capsule(runner, iteration, states, own)
                )
            for name, value in row.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
        processor = runner.log_processor
        if not processor.custom_cfg:
            length = max(HISTORY, processor.window_size, len(runner.train_dataloader))
            for buffer in runner.message_hub.log_scalars.values():
                buffer.max_length = length


def stack_numbers(values: list[Tensor]) -> Tensor:
    """Put the means of tensors of any shapes into one, on the accelerator if one of them is."""
    device = next((v.device for v in values if v.device.type != 'cpu'), values[0].device)
    return torch.stack([_average(value).to(device) for value in values])


def _average(value: Tensor) -> Tensor:
    # Nearly all are such a number already, and each kernel on it would be one of hundreds.
    is_number = value.ndim == 0 and value.dtype == torch.float32
    return value if is_number else value.float().mean()


def _stop(
    runner: Runner, iteration: int, epoch: int, losses: dict[str, float], capsule: str | None
) -> None:
    """Raise ``FloatingPointError`` for a loss, or else a gradient, that is not finite."""
    what = 'a gradient' if all(map(math.isfinite, losses.values())) else 'the loss'
    values = ', '.join(f'{name}={value:g}' for name, value in losses.items())
    last, _ = find_good_checkpoint(runner.work_dir)
    way_back = (
        f'the last good checkpoint is {last} (tools/train.py CONFIG --resume {last})'
        if last
        else 'no checkpoint had been written yet'
    )
    again = f' "mmpatchmix replay {capsule}" repeats the step and says where.' if capsule else ''
    raise FloatingPointError(
        f'{what} is not finite at iteration {iteration + 1} of epoch {epoch + 1}: '
        f'{values}; {way_back}.{again} Usual causes: a learning rate too high for the batch '
        '(see --auto-scale-lr), float16 instead of bfloat16, or damaged images.'
    )


def write_capsule(
    runner: Runner, iteration: int, states: dict[str, Any], losses: dict[str, float]
) -> str | None:
    """Write ``failed_iter_N.pth``: batch, weights, random states and config of a step that failed.

    The batch is read again, for samples depend on seed, epoch and index alone. The weights are
    those before the step, as :class:`~mmpatchmix.engine.BF16OptimWrapper` leaves them. On an
    accelerator and among several ranks a failure is seen when losses are logged: by then the
    momentum encoder has come nearer to them by as many updates.

    Args:
        runner: Of the run.
        iteration: The step, from 0, in the epoch under way.
        states: Random states before it, as of
            :func:`~mmpatchmix.engine.exact_order.read_random_states`.
        losses: What it gave on this rank.

    Returns:
        str | None: The file; None where the weights are lost (another optimizer), the samples are
        not known (another sampler) or the disk fails.
    """
    wrapper, rank = runner.optim_wrapper, dist.get_rank()
    if getattr(wrapper, 'broken', None) is None:
        return None
    loop = runner.train_loop
    if not isinstance(loop, ExactTrainLoop) or find_sampler(loop.dataloader) is None:
        return None
    batch, indices = _read_batch(loop, iteration)
    capsule = {
        'config': to_plain(runner.cfg.to_dict()),
        'iteration': iteration,
        'epoch': runner.epoch,
        'rank': rank,
        'ranks': dist.get_world_size(),
        'torch': str(torch.__version__),
        'bf16': bool(wrapper.enabled),
        'losses': losses,
        'indices': indices,
        'inputs': batch['inputs'],
        'random_states': states,
        'state_dict': unwrap_model(runner.model).state_dict(),
    }
    name = f'failed_iter_{iteration + 1}' + (f'_rank_{rank}' if rank else '') + '.pth'
    path, partial = Path(runner.work_dir, name), Path(runner.work_dir, f'.{name}.partial')
    try:
        torch.save(capsule, partial)
        seal(partial)
        move_into_place(partial, path)
    except OSError as error:
        runner.logger.warning(f'{name} was not written: {error}')
        partial.unlink(missing_ok=True)
        return None
    return str(path)


def _read_batch(loop: ExactTrainLoop, iteration: int) -> tuple[dict, list[int]]:
    loader = loop.dataloader
    position = iteration - loop.epoch * len(loader)
    indices = next(islice(iter(loader.batch_sampler), position, None))
    return loader.collate_fn(loader.dataset.__getitems__(indices)), [int(i) for i in indices]
