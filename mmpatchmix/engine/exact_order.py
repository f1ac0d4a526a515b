"""Random states, the order and seeds of samples, and a train loop that resumes anywhere."""

import hashlib
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS as ROOT_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mmpatchmix.registry import LOOPS

WORKER_SECONDS = 600  # timeout of data workers


def read_random_states() -> dict[str, Any]:
    """Return the states of Python, numpy, torch and this process's GPU, as tensors and numbers."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    keys = torch.from_numpy(keys.astype(np.int64))
    states = {
        'python': dict(version=version, numbers=torch.tensor(numbers), gauss=gauss),
        'numpy': dict(keys=keys, position=position, has_gauss=has_gauss, cached=cached),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Set the result of :func:`read_random_states`, without that of a GPU if none is in use."""
    version, numbers, gauss = states['python'].values()
    random.setstate((version, tuple(numbers.tolist()), gauss))
    keys, *rest = states['numpy'].values()
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states['cuda'].cpu())


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore all random states on exit."""
    states = read_random_states()
    try:
        yield
    finally:
        set_random_states(states)


def seed_cpu(seed: int) -> None:
    """Seed Python, numpy and torch on the CPU with a number from 0 to 2 ** 32 - 1."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would also queue the seed for GPUs, without limit in data workers.
    torch.default_generator.manual_seed(seed)


class SampleIndex(int):
    """Index of a sample, with the sampler's seed and the epoch (from 0)."""

    def __new__(cls, index: int, seed: int, epoch: int) -> 'SampleIndex':  # noqa: D102
        self = super().__new__(cls, index)
        self.seed, self.epoch = seed, epoch
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed, self.epoch)


class ExactSampler(DefaultSampler):
    """mmengine's sampler, whose next epoch may start in the middle; yields :class:`SampleIndex`."""

    num_skipped = 0  # samples of this rank to skip in the next epoch

    def __iter__(self) -> Iterator[SampleIndex]:
        skipped, self.num_skipped = self.num_skipped, 0
        seed, epoch = self.seed, self.epoch
        indices = islice(super().__iter__(), skipped, None)
        return (SampleIndex(index, seed, epoch) for index in indices)


class SkippableBatches(Sampler[list[int]]):
    """A batch sampler of a config, such as mmdet's, whose next epoch may start in the middle."""

    def __init__(self, sampler: Sampler, batch_size: int, batches: dict) -> None:
        default_args = {'sampler': sampler, 'batch_size': batch_size}
        self.batches = ROOT_SAMPLERS.build(batches, default_args=default_args)
        self.sampler, self.batch_size = sampler, batch_size
        self.num_skipped = 0  # batches

    def __iter__(self) -> Iterator[list[int]]:
        skipped, self.num_skipped = self.num_skipped, 0
        return islice(self.batches, skipped, None)

    def __len__(self) -> int:
        return len(self.batches)


class SeededSamples:
    """A dataset, or the config of one, that seeds Python, numpy and torch for each SampleIndex.

    Without workers the generators of the training process are restored.
    """

    def __init__(self, dataset: dict | Dataset) -> None:
        built = ROOT_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.__dict__['dataset'] = built

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not set yet while a copy is made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Of the dataset, whose pipeline mmpretrain's SwitchRecipeHook sets.
        setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list:
        """Return the samples of a batch; called by torch's data loader."""
        is_seeded = any(isinstance(index, SampleIndex) for index in indices)
        with nullcontext() if get_worker_info() or not is_seeded else random_states_kept():
            return [self._read(index) for index in indices]

    def _read(self, index: int) -> Any:
        if isinstance(index, SampleIndex):
            numbers = struct.pack('<qqq', index.seed, index.epoch, index)
            digest = hashlib.blake2b(numbers, digest_size=4).digest()
            seed_cpu(int.from_bytes(digest, 'little'))
        return self.dataset[index]


def make_exact(dataloader: dict) -> dict:
    """Return the config of a loader with exact order and seeds, if it has a ``DefaultSampler``."""
    name = dataloader['sampler']['type']
    if name is not DefaultSampler and str(name).rpartition('.')[2] != 'DefaultSampler':
        return dataloader
    exact = dict(dataloader, sampler=dict(dataloader['sampler'], type=ExactSampler))
    if exact.get('num_workers'):
        exact.setdefault('timeout', WORKER_SECONDS)
    exact['dataset'] = {'type': SeededSamples, 'dataset': dataloader['dataset']}
    if batches := dataloader.get('batch_sampler'):
        exact['batch_sampler'] = {'type': SkippableBatches, 'batches': batches}
    return exact


def find_sampler(loader: DataLoader) -> ExactSampler | None:
    """Return the exact sampler of a data loader; None if it has another sampler."""
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    return sampler if isinstance(sampler, ExactSampler) else None


def skip_batches(loader: DataLoader, num_batches: int) -> bool:
    """Skip batches of this rank in the next epoch; return whether the sampler supports it."""
    sampler = find_sampler(loader)
    if isinstance(loader.batch_sampler, SkippableBatches):
        loader.batch_sampler.num_skipped = num_batches
    elif sampler is not None:
        sampler.num_skipped = num_batches * loader.batch_size
    return sampler is not None


@LOOPS.register_module()
class ExactTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which may start in the middle of one.

    Order and seeds of samples depend on seed, epoch and index only; consumed samples are not read
    again, or with a sampler other than ``DefaultSampler`` read and dropped. Starting workers and
    evaluating leave the random generators of training unchanged. An evaluation that was due before
    an interruption is done first. ``mmpatchmix.ExactResumeHook`` saves and restores the state.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs: Any) -> None:
        dataloader = make_exact(dataloader) if isinstance(dataloader, dict) else dataloader
        super().__init__(runner, dataloader, **kwargs)
        self.random_states: dict | None = None  # to restore before the next iteration
        self.evaluated_epoch = 0
        self.batches: Any = None  # iterator of the current epoch

    @property
    def position(self) -> int:
        """Number of finished iterations of the current epoch."""
        return self._iter - self._epoch * len(self.dataloader)

    def state_dict(self) -> dict[str, int]:
        """Return the state for checkpoints besides epoch and iteration."""
        seed = getattr(find_sampler(self.dataloader), 'seed', None)
        return {'evaluated_epoch': self.evaluated_epoch, 'sampler_seed': seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.evaluated_epoch = state['evaluated_epoch']
        sampler = find_sampler(self.dataloader)
        if sampler is not None and state.get('sampler_seed') is not None:
            sampler.seed = state['sampler_seed']

    def run(self) -> Any:
        """Train; see mmengine's base class. Hooks may have ``after_train_or_error``.

        It is called however training ends, unlike ``after_train``.
        """
        try:
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
        finally:
            self.runner.call_hook('after_train_or_error')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for the rest of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self.position
        with random_states_kept():
            skips = first == 0 or skip_batches(self.dataloader, first)
            self.batches = batches = iter(self.dataloader)
            if not skips:
                message = f'The sampler cannot skip batches: {first} batches are read and dropped.'
                self.runner.logger.warning(message)
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
        is_due = is_due and self.evaluated_epoch < epoch and epoch >= self.val_begin
        if self.runner.val_loop is not None and is_due and self.position == 0:
            self.evaluated_epoch = epoch
            self.random_states = read_random_states()  # also of what is saved in between
            self.runner.val_loop.run()
            self._restore_random_states()
