"""Datasets that put up with a few files that cannot be read, and stop at many."""

from collections.abc import Sequence
from typing import Any

import cv2
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import MMLogger
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets import CustomDataset as UpstreamDataset
from PIL.Image import DecompressionBombError

from mmpatchmix.registry import DATASETS

# What loading a bad file raises. mmcv asserts when OpenCV returns None; Pillow's PNG reader
# raises SyntaxError.
ERRORS = (OSError, EOFError, AssertionError, SyntaxError, cv2.error, DecompressionBombError)

# A handful of bad files says nothing about a small folder: 1 of 50 would be 2 %.
ALWAYS_ALLOWED = 3

NUM_SHOWN = 5


class UnreadableImagesError(ValueError):
    """Too many images cannot be read.

    A DataLoader raises the error of a worker again, with the worker's whole traceback as its
    message. Only what follows this class's name there is kept, so that users read one message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].rstrip())


class SkipUnreadable(BaseDataset):
    """Replace and count the files that cannot be read.

    Only errors of the loading transform count; those of the others are never taken for a bad
    file. Whichever process meets a bad file sets its byte of shared memory, so each counts
    once: over all epochs and workers, forked or spawned, without a lock. Each rank of a
    distributed run counts for itself.
    """

    max_unreadable = 0.01  # share of the files; subclasses make it an argument

    def filter_data(self) -> Sequence:
        """Start the count; called once, by ``full_init``."""
        self._is_unreadable = torch.zeros(len(self.data_list), dtype=torch.bool).share_memory_()
        return super().filter_data()

    @property
    def num_unreadable(self) -> int:
        """Number of files found unreadable so far, over all worker processes."""
        return int(self._is_unreadable.sum())

    def name_sample(self, idx: int) -> str:
        """Return what a message calls the file of a sample."""
        return self.get_data_info(idx)['img_path']

    def prepare_data(self, idx: int) -> dict | None:
        """Run the pipeline on one sample, or raise if too many files are unreadable.

        For an unreadable file return the next readable sample with ``test_mode=True``, where
        every run should see the same, else None, for which mmengine takes a random sample.
        """
        num_tries = len(self) if self.test_mode else 1
        tries = (self._run_pipeline((idx + offset) % len(self)) for offset in range(num_tries))
        return next((data for data in tries if data is not None), None)

    def _run_pipeline(self, idx: int) -> dict | None:
        data = self.get_data_info(idx)
        for transform in self.pipeline.transforms:
            try:
                data = transform(data)
            except ERRORS as error:
                if not isinstance(transform, LoadImageFromFile):
                    raise
                self._note_unreadable(idx, error)
                return None
            if data is None:
                return None
        return data

    def _note_unreadable(self, idx: int, error: Exception) -> None:
        is_new = not self._is_unreadable[idx]
        self._is_unreadable[idx] = True
        reason = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
        if isinstance(error, AssertionError):  # mmcv repeats the path, and says no more
            reason = 'not an image, or an incomplete one'
        at_least = ALWAYS_ALLOWED if self.max_unreadable else 0
        count, limit = self.num_unreadable, max(int(self.max_unreadable * len(self)), at_least)
        # Also asked about files met before, so that every worker stops, not one of them.
        if count > limit or count == len(self):
            numbers = self._is_unreadable.nonzero()[:NUM_SHOWN, 0].tolist()
            paths = '\n'.join(f'  {self.name_sample(number)}' for number in numbers)
            raise UnreadableImagesError(
                f'{count} of {len(self)} images cannot be read; the run puts up with {limit} '
                f'(max_unreadable={self.max_unreadable}). The first of them:\n{paths}\n'
                f'The last reason was: {reason}. Replace or delete these files, or raise '
                'max_unreadable of the dataset.'
            ) from error
        if is_new and count <= NUM_SHOWN:
            more = '; further ones are counted in silence' if count == NUM_SHOWN else ''
            MMLogger.get_current_instance().warning(
                'Unreadable image skipped, another takes its place: '
                f'{self.name_sample(idx)} ({reason}){more}'
            )


@DATASETS.register_module()
class CustomDataset(SkipUnreadable, UpstreamDataset):
    """mmpretrain's ``CustomDataset``, which skips and counts images that cannot be read.

    For configs that have an ``ann_file``, or images on a backend that is no file system. Where
    there is none of these, :class:`~mmpatchmix.datasets.ImageFolder` reads folders and lists.

    Args:
        *args: As in mmpretrain.
        max_unreadable: Share of images that may be unreadable, in [0, 1]; more, and more than 3,
            stop the run. With 0 the first one does.
        **kwargs: As in mmpretrain.

    Raises:
        ValueError: If ``max_unreadable`` is no share.
    """

    def __init__(self, *args: Any, max_unreadable: float = 0.01, **kwargs: Any) -> None:
        if not 0 <= max_unreadable <= 1:
            raise ValueError(
                f'CustomDataset: max_unreadable must be in [0, 1]; got {max_unreadable}'
            )
        self.max_unreadable = max_unreadable
        super().__init__(*args, **kwargs)
