"""The training loop of a run that continues exactly where it stopped."""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmpatchmix.engine.exact_order import find_sampler, make_exact, skip_batches
from mmpatchmix.engine.random_states import random_states_kept, set_random_states
from mmpatchmix.registry import LOOPS


@LOOPS.register_module()
class ExactTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which may begin in the middle of one.

    - Samples that an epoch has consumed are not read again.
    - The order and the randomness of samples depend on seed, epoch and index only:
      :mod:`mmpatchmix.engine.exact_order`.
    - Starting workers and evaluating draw nothing from the random generators of training.
    - An evaluation that was due and did not happen comes first.

    ``mmpatchmix.ExactResumeHook`` saves and restores what this loop needs. With another
    sampler than mmengine's ``DefaultSampler``, consumed samples are read and dropped.

    Args:
        runner: The Runner.
        dataloader: Config of the training data loader, or the loader itself.
        **kwargs: Those of mmengine's ``EpochBasedTrainLoop``: ``max_epochs``, ...
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs: Any) -> None:
        if isinstance(dataloader, dict):
            dataloader = make_exact(dataloader)
        super().__init__(runner, dataloader, **kwargs)
        self.random_states: dict | None = None  # to restore before the next iteration
        self.evaluated_epoch = 0
        self.batches: Any = None  # the iterator of the epoch under way

    @property
    def position(self) -> int:
        """Number of iterations of the present epoch that are done."""
        return self._iter - self._epoch * len(self.dataloader)

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint needs besides epoch and iteration."""
        sampler = find_sampler(self.dataloader)
        state = {'evaluated_epoch': self.evaluated_epoch}
        return state if sampler is None else state | {'sampler_seed': sampler.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.evaluated_epoch = state['evaluated_epoch']
        sampler = find_sampler(self.dataloader)
        if sampler is not None and 'sampler_seed' in state:
            sampler.seed = state['sampler_seed']

    def run(self) -> Any:
        """Train; see mmengine's base class."""
        self.runner.call_hook('before_train')
        if self._epoch:  # resumed
            self._decide_current_val_interval()
        self._restore_random_states(keep=self.position > 0)
        self._evaluate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._evaluate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for the rest of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self.position
        skips = first == 0 or skip_batches(self.dataloader, first)
        with random_states_kept():
            self.batches = batches = iter(self.dataloader)
            if not skips:
                print_log(
                    f'The sampler cannot begin in the middle: {first} batches are read and '
                    'dropped.',
                    logger='current',
                    level=logging.WARNING,
                )
                for _ in range(first):
                    next(batches)
        self._restore_random_states()
        for idx, batch in enumerate(batches, start=first):
            self.run_iter(idx, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _restore_random_states(self, keep: bool = False) -> None:
        if self.random_states is not None:
            set_random_states(self.random_states)
            if not keep:
                self.random_states = None

    def _evaluate_if_due(self) -> None:
        epoch = self._epoch
        is_due = epoch % self.val_interval == 0 or epoch == self._max_epochs
        if self.runner.val_loop is None or not is_due or epoch < max(self.val_begin, 1):
            return
        if self.position == 0 and self.evaluated_epoch < epoch:
            self.evaluated_epoch = epoch
            with random_states_kept():
                self.runner.val_loop.run()
