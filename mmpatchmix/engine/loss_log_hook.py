"""The hook that copies losses to the host when they are logged, and stops a run at NaN."""

import math
from itertools import islice
from pathlib import Path

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

BROKEN = 'broken'  # key in the buffered outputs: whether the optimizer has stopped stepping
HISTORY = 2000  # length of the log history, which mmengine copies for each new value


@HOOKS.register_module()
class LossLogHook(RuntimeInfoHook):
    """Replace mmengine's ``RuntimeInfoHook``: copy losses to the host late, stop at NaN.

    Losses stay on the device until the next log line, checkpoint or end of an epoch; then they are
    averaged over the ranks and copied together, so that the host can run ahead of the device. The
    log history has one entry per iteration, for the last 2,000 iterations or one epoch, whichever
    is longer (for all if ``log_processor.custom_cfg`` is set). A loss or gradient that is NaN or
    infinite stops the run before anything is logged or saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: list[tuple[int, int, dict[str, Tensor], dict]] = []
        self._states: dict = {}  # random states at the beginning of the iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Log iteration and learning rates; store the random states."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if hasattr(runner.optim_wrapper, 'broken'):  # otherwise the step cannot be re-run
            self._states = read_random_states()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Store the outputs; when due, copy all to the host and stop if they are not finite."""
        values = {name: torch.as_tensor(v).detach() for name, v in (outputs or {}).items()}
        for name in (BROKEN, 'grad_norm'):
            if (value := getattr(runner.optim_wrapper, name, None)) is not None:
                values[name] = value
        self._pending.append((runner.iter, runner.epoch, values, self._states))
        if self._is_due(runner, batch_idx):
            self.prepare_checkpoint(runner)

    def after_train(self, runner: Runner) -> None:
        """Log the remaining outputs."""
        self.prepare_checkpoint(runner)
        super().after_train(runner)

    def prepare_checkpoint(self, runner: Runner) -> None:
        """Copy all stored outputs to the host and log them; called on all ranks."""
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
                file = write_failed_step(runner, iteration, states, own)
                _raise(runner, iteration, epoch, losses, file)
            for name, value in row.items():
                runner.message_hub.update_scalar(f'train/{name}', value)
        processor = runner.log_processor
        if not processor.custom_cfg:
            length = max(HISTORY, processor.window_size, len(runner.train_dataloader))
            for buffer in runner.message_hub.log_scalars.values():
                buffer.max_length = length

    def _is_due(self, runner: Runner, batch_idx: int) -> bool:
        on_host = all(value.device.type == 'cpu' for value in self._pending[-1][2].values())
        if on_host and dist.get_world_size() == 1:
            return True  # neither a device nor other ranks to synchronise with
        return self.end_of_epoch(runner.train_dataloader, batch_idx) or any(
            self.every_n_inner_iters(batch_idx, hook.interval)
            if isinstance(hook, LoggerHook)
            else not hook.by_epoch and self.every_n_train_iters(runner, hook.interval)
            for hook in runner.hooks
            if isinstance(hook, LoggerHook | CheckpointHook)
        )


def stack_numbers(values: list[Tensor]) -> Tensor:
    """Stack the means of tensors of any shape, on the accelerator if one of them is there."""
    device = next((v.device for v in values if v.device.type != 'cpu'), values[0].device)
    return torch.stack([_average(value).to(device) for value in values])


def _average(value: Tensor) -> Tensor:
    # Most values are float32 scalars already; this spares hundreds of kernels.
    is_number = value.ndim == 0 and value.dtype == torch.float32
    return value if is_number else value.float().mean()


def _raise(runner: Runner, iteration: int, epoch: int, losses: dict, file: str | None) -> None:
    name = 'a gradient' if all(map(math.isfinite, losses.values())) else 'the loss'
    values = ', '.join(f'{name}={value:g}' for name, value in losses.items())
    good, _ = find_good_checkpoint(runner.work_dir)
    saved = f'the last good checkpoint is {good} (tools/train.py CONFIG --resume {good}).'
    saved = saved if good else 'no checkpoint had been written yet.'
    page = 'docs/troubleshooting.md, "Re-run a step that produced NaN"'
    rerun = f' The inputs of the step are in {file}, the code to re-run it in {page}.'
    raise FloatingPointError(
        f'{name} is not finite at iteration {iteration + 1} of epoch {epoch + 1}: {values}; {saved}'
        f'{rerun if file else ""} Usual causes: a learning rate too high for the batch (see '
        '--auto-scale-lr), float16 instead of bfloat16, or damaged images.'
    )


def write_failed_step(runner: Runner, iteration: int, states: dict, losses: dict) -> str | None:
    """Write ``failed_iter_N.pth``: batch, weights, random states and config of a failed step.

    The batch is read again, since samples depend on seed, epoch and index only. Trained weights are
    those before the step (``BF16OptimWrapper`` stops); the momentum encoder may be ahead of it.

    ``iteration`` counts from 0, ``states`` are the random states before the step, ``losses`` those
    of this rank. Returns the path; None for other optimizers and samplers, or if the disk fails.
    """
    wrapper, rank, loader = runner.optim_wrapper, dist.get_rank(), runner.train_dataloader
    is_exact = isinstance(runner.train_loop, ExactTrainLoop) and find_sampler(loader) is not None
    if getattr(wrapper, 'broken', None) is None or not is_exact:
        return None
    position = iteration - runner.epoch * len(loader)
    indices = next(islice(iter(loader.batch_sampler), position, None))
    batch = loader.collate_fn(loader.dataset.__getitems__(indices))
    content = {
        'config': to_plain(runner.cfg.to_dict()),
        'iteration': iteration,
        'epoch': runner.epoch,
        'rank': rank,
        'ranks': dist.get_world_size(),
        'torch': str(torch.__version__),
        'bf16': bool(wrapper.enabled),
        'losses': losses,
        'indices': [int(index) for index in indices],
        'inputs': batch['inputs'],
        'random_states': states,
        'state_dict': unwrap_model(runner.model).state_dict(),
    }
    name = f'failed_iter_{iteration + 1}' + (f'_rank_{rank}' if rank else '') + '.pth'
    path, partial = Path(runner.work_dir, name), Path(runner.work_dir, f'.{name}.partial')
    try:
        torch.save(content, partial)
        seal(partial)
        move_into_place(partial, path)
    except OSError as error:
        runner.logger.warning(f'{name} was not written: {error}')
        partial.unlink(missing_ok=True)
        return None
    return str(path)
