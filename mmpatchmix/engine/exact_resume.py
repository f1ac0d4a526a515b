"""Hooks that save state in checkpoints: the base class, and the hook that makes resuming exact."""

from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mmpatchmix.engine.exact_order import ExactTrainLoop, read_random_states, seed_cpu
from mmpatchmix.engine.schedules import compare_plans, describe_plan, replan
from mmpatchmix.registry import HOOKS


class StatefulHook(Hook):
    """A hook with state in checkpoints, under ``key``.

    Subclasses define ``state_dict``, of plain data and tensors (None to save nothing). They restore
    it in ``before_train``, when it is known whether the run was resumed.
    """

    key = ''
    _loaded: Any = None

    def pop_loaded_state(self) -> Any:
        """Return the state of the loaded checkpoint once; None if there is none."""
        loaded, self._loaded = self._loaded, None
        return loaded

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state to the checkpoint."""
        if (state := self.state_dict()) is not None:
            checkpoint[self.key] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the loaded state for :meth:`pop_loaded_state`."""
        self._loaded = checkpoint.get(self.key)


@HOOKS.register_module()
class ExactResumeHook(StatefulHook):
    """Save random states, the sampler's seed and the plan of the run in every checkpoint.

    With ``mmpatchmix.ExactTrainLoop`` a resumed run then equals an uninterrupted one bit for bit.
    Checkpoints load with ``weights_only=True``. Resuming with another plan raises an error, with
    ``change_schedule`` not for another length or batch size.
    """

    priority = 'HIGHEST'  # before timers store the first iteration
    key = 'exact_resume'

    def __init__(self, change_schedule: bool = False) -> None:
        self.change_schedule = change_schedule
        self._states: list[dict] | None = None  # of all ranks
        self._loop: ExactTrainLoop | None = None
        self._plan: dict[str, str] = {}

    def before_run(self, runner: Runner) -> None:
        """Store the plan before a checkpoint overwrites it."""
        if isinstance(runner._train_loop, ExactTrainLoop):
            self._loop, self._plan = runner._train_loop, describe_plan(runner)

    def prepare_checkpoint(self, runner: Runner) -> None:
        """Gather the random states of all ranks; called on all ranks before rank 0 saves."""
        states = getattr(self._loop, 'random_states', None) or read_random_states()
        self._states = dist.all_gather_object(states)

    def state_dict(self) -> dict[str, Any] | None:
        """Return random states, position and plan."""
        states, self._states = self._states, None
        if states is None and dist.get_world_size() == 1:  # mmengine's own CheckpointHook
            states = [read_random_states()]
        if states is None or self._loop is None:
            return None
        return {'loop': self._loop.state_dict(), 'plan': self._plan, 'random_states': states}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state, and convert the log history to plain data."""
        for key in ('meta', 'message_hub'):
            checkpoint[key] = to_plain(checkpoint.get(key, {}))
        super().before_save_checkpoint(runner, checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Convert the log history back, and store the state for :meth:`before_train`.

        A file without the states that a resumed run needs raises ``ValueError``.
        """
        if runner._resume and not runner._has_loaded:
            refuse_without_states(runner, checkpoint)
        hub = checkpoint.get('message_hub', {})
        scalars = hub.get('log_scalars', {})
        if hub:  # mmengine warns of keys without a value
            kept = scalars.keys() | hub['runtime_info'].keys()
            hub['resumed_keys'] = {k: v for k, v in hub['resumed_keys'].items() if k in kept}
        for name, value in scalars.items():
            if isinstance(value, dict):
                values, counts = (value[key].cpu().numpy() for key in ('values', 'counts'))
                scalars[name] = HistoryBuffer(values, counts, value['max_length'])
        super().after_load_checkpoint(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        """Restore the state of a resumed run; refuse another plan with ``ValueError``."""
        loaded = self.pop_loaded_state()
        if runner.iter == 0 or self._loop is None:
            return
        if loaded is None:
            runner.logger.warning(
                'The checkpoint has no random states and no position in the data: the run '
                'continues, but not exactly as an uninterrupted one.'
            )
            return
        self._compare_plan(runner, loaded['plan'])
        self._loop.load_state_dict(loaded['loop'])
        states = loaded['random_states']
        if len(states) == dist.get_world_size():
            self._loop.random_states = states[dist.get_rank()]
        else:
            self._reseed(runner, len(states))

    def _compare_plan(self, runner: Runner, before: dict[str, str]) -> None:
        differences, can_change = compare_plans(before, self._plan)
        if not differences:
            return
        lines = ''.join(f'\n  {line}' for line in differences)
        if not (self.change_schedule and can_change):
            raise ValueError(
                f'this run differs from the run of the checkpoint:{lines}\nResume it with the '
                'values of the checkpoint. --change-schedule (default_hooks.exact_resume.'
                'change_schedule=True) continues with other epochs or another batch, and with no '
                'other difference.'
            )
        replan(runner, before)
        rates = ', '.join(f'{rate:g}' for rate in sorted(set(runner.optim_wrapper.get_lr()['lr'])))
        runner.logger.warning(
            f'The schedule is changed:{lines}\n  continuing at epoch {runner.epoch + 1} of '
            f'{runner.max_epochs}, iteration {runner.iter + 1} of {runner.max_iters}, with a '
            f'learning rate of {rates}'
        )

    def _reseed(self, runner: Runner, num_before: int) -> None:
        """Seed all random generators from the run's seed, the iteration and the rank."""
        ranks, rank = dist.get_world_size(), dist.get_rank()
        runner.logger.warning(
            f'Resumed on {ranks} ranks instead of {num_before}. The order of samples, their crops '
            'and all schedules are unchanged. BatchNorm (unless synchronised) and mixing now use '
            f'the {runner.train_dataloader.batch_size} images of a rank; augmentations and mixes '
            'are drawn from new seeds.'
        )
        numbers = np.random.SeedSequence([abs(runner.seed), runner.iter, ranks, rank])
        seed_cpu(seed := int(numbers.generate_state(1)[0]))
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        self._loop.random_states = read_random_states()


def refuse_without_states(runner: Runner, checkpoint: dict) -> None:
    """Raise ``ValueError`` for a file without optimizer or schedules; mmengine restarts these."""
    schedules = ['param_schedulers'] if runner.param_schedulers else []
    needed = ['meta', 'message_hub', 'optimizer', *schedules]
    if missing := [key for key in needed if not checkpoint.get(key)]:
        raise ValueError(
            f'{runner._load_from or "the checkpoint"} cannot be resumed, it has no '
            f'{", ".join(missing)}. Resume from an epoch_N.pth or iter_N.pth of the run (a best_ '
            'file holds weights alone), or start a new run from the weights without --resume: '
            '--init FILE for the backbone, --cfg-options load_from=FILE for the whole model.'
        )


def to_plain(value: Any) -> Any:
    """Convert data to dicts, lists, tuples, numbers, strings and tensors; other objects to None."""
    if isinstance(value, HistoryBuffer):
        values, counts = (torch.as_tensor(numbers) for numbers in value.data)
        return {'values': values, 'counts': counts, 'max_length': value.max_length}
    if isinstance(value, dict):
        return {to_plain(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list | set):
        return (tuple if isinstance(value, tuple) else list)(map(to_plain, value))
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.as_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, str | int | float | bytes | torch.Tensor) else None
