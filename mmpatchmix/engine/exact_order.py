"""Order and randomness of training samples as functions of seed, epoch and index alone.

So neither depends on how many workers or ranks there are, nor on a restart in between.
``mmpatchmix.ExactTrainLoop`` puts these around what a config names.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS as ROOT_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from torch.utils.data import DataLoader, Sampler, get_worker_info

from mmpatchmix.engine.random_states import random_states_kept, seed_cpu

# A batch that takes its workers longer than this never comes: they are stopped, or their disk is.
WORKER_SECONDS = 600


class SampleIndex(int):
    """Index of a sample that carries what its randomness depends on to the workers.

    Args:
        index: The index.
        seed: Of the sampler, the same on all ranks.
        epoch: From 0.
    """

    def __new__(cls, index: int, seed: int, epoch: int) -> 'SampleIndex':  # noqa: D102
        self = super().__new__(cls, index)
        self.seed, self.epoch = seed, epoch
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), self.seed, self.epoch)

    def derive_seed(self) -> int:
        """Return 32 bits that look random, a function of seed, epoch and index."""
        numbers = struct.pack('<qqq', self.seed, self.epoch, self)
        return int.from_bytes(hashlib.blake2b(numbers, digest_size=4).digest(), 'little')


class ExactSampler(DefaultSampler):
    """mmengine's sampler, whose next epoch may begin in the middle.

    Rank r of W takes every W-th sample, so a batch over all ranks holds the same samples
    whatever W is. Indices are :class:`SampleIndex`.
    """

    num_skipped = 0  # samples of this rank to leave out of the next epoch

    def __iter__(self) -> Iterator[SampleIndex]:
        skipped, self.num_skipped = self.num_skipped, 0
        seed, epoch = self.seed, self.epoch
        indices = islice(super().__iter__(), skipped, None)
        return (SampleIndex(index, seed, epoch) for index in indices)


class SkippableBatches(Sampler[list[int]]):
    """A batch sampler of a config, such as mmdet's, whose next epoch may begin in the middle.

    Args:
        sampler: Of the samples.
        batch_size: Samples per batch.
        batches: Config of the batch sampler.
    """

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
    """A dataset that seeds Python, numpy and torch before each sample of :class:`ExactSampler`.

    In the training process itself (no workers) the generators return to where they were.
    Attributes are those of the dataset inside.

    Args:
        dataset: Config of the dataset.
    """

    def __init__(self, dataset: dict) -> None:
        self.dataset = ROOT_DATASETS.build(dataset)

    def full_init(self) -> None:
        """Read the annotations, as mmengine asks datasets to."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet, while a copy is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list:
        """Return the samples of a batch; torch's data loader asks for all of them at once."""
        if get_worker_info() or not any(isinstance(index, SampleIndex) for index in indices):
            return [self._read(index) for index in indices]
        with random_states_kept():
            return [self._read(index) for index in indices]

    def _read(self, index: int) -> Any:
        if isinstance(index, SampleIndex):
            seed_cpu(index.derive_seed())
        return self.dataset[index]


def make_exact(dataloader: dict) -> dict:
    """Change the config of a data loader so that order and randomness are exact.

    Workers that give nothing for :data:`WORKER_SECONDS` end the run, unless ``timeout`` is set.

    Args:
        dataloader: Config with ``dataset`` and ``sampler``; not changed.

    Returns:
        dict: The same loader; unchanged where the sampler is not mmengine's ``DefaultSampler``,
        whose position nobody knows.
    """
    sampler = dict(dataloader['sampler'])
    name = sampler.get('type')
    if name is not DefaultSampler and str(name).rpartition('.')[2] != 'DefaultSampler':
        return dataloader
    exact = dict(dataloader, sampler=sampler | {'type': ExactSampler})
    if exact.get('num_workers'):
        exact.setdefault('timeout', WORKER_SECONDS)
    exact['dataset'] = {'type': SeededSamples, 'dataset': dataloader['dataset']}
    if batches := dataloader.get('batch_sampler'):
        exact['batch_sampler'] = {'type': SkippableBatches, 'batches': batches}
    return exact


def find_sampler(loader: DataLoader) -> ExactSampler | None:
    """Return the exact sampler of a data loader; None where it has another one."""
    batches = loader.batch_sampler
    sampler = batches.sampler if isinstance(batches, SkippableBatches) else loader.sampler
    return sampler if isinstance(sampler, ExactSampler) else None


def skip_batches(loader: DataLoader, num_batches: int) -> bool:
    """Leave batches out of the next epoch of a loader, without reading them.

    Args:
        loader: The data loader.
        num_batches: How many, of this rank.

    Returns:
        bool: Whether the loader can; else nothing happens.
    """
    sampler = find_sampler(loader)
    if sampler is None:
        return False
    if isinstance(loader.batch_sampler, SkippableBatches):
        loader.batch_sampler.num_skipped = num_batches
    else:
        sampler.num_skipped = num_batches * loader.batch_size
    return True
