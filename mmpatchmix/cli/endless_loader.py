"""A train loader that does not end, for measuring."""

from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader


class EndlessBatches:
    """Epoch after epoch of a batch sampler, so that a short epoch does not end a measurement.

    Args:
        batch_sampler: Yields the indices of batches.
        first_epoch: Which order of the images to begin with, where it is random.

    Raises:
        ValueError: When an epoch has no batch.
    """

    def __init__(self, batch_sampler: Iterable, first_epoch: int = 0) -> None:
        self.batch_sampler = batch_sampler
        self.epoch = first_epoch

    def __iter__(self) -> Iterator:
        """Yield the indices of a batch, for ever."""
        while True:
            sampler = getattr(self.batch_sampler, 'sampler', None)
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.epoch)
            empty = True
            for indices in self.batch_sampler:
                empty = False
                yield indices
            if empty:
                raise ValueError(
                    'train_dataloader: the images do not fill one batch. Lower '
                    'train_dataloader.batch_size (--batch-size).'
                )
            self.epoch += 1


def endless_loader(loader: DataLoader, first_epoch: int = 0) -> DataLoader:
    """The same data, workers and memory as a loader, without end.

    Args:
        loader: A loader as the Runner builds it.
        first_epoch: See :class:`EndlessBatches`. Loaders that read other images first
            do not profit from what the system has cached of each other's.

    Returns:
        DataLoader: To be iterated over once.
    """
    names = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn')
    names += ('multiprocessing_context', 'generator', 'prefetch_factor')
    return DataLoader(
        loader.dataset,
        batch_sampler=EndlessBatches(loader.batch_sampler, first_epoch),
        **{name: getattr(loader, name) for name in names},
    )
