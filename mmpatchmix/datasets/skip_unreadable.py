"""Datasets that skip and count unreadable images, and stop the run when there are too many."""

from collections.abc import Sequence
from typing import Any

import cv2
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmpretrain.datasets import CustomDataset as UpstreamDataset
from PIL.Image import DecompressionBombError

from mmpatchmix.datasets.image_list import is_special_file
from mmpatchmix.registry import DATASETS

# Errors of loading a damaged file. mmcv asserts when OpenCV returns None; Pillow's PNG reader
# raises SyntaxError.
ERRORS = (OSError, EOFError, AssertionError, SyntaxError, cv2.error, DecompressionBombError)
ALWAYS_ALLOWED = 3  # because one file is a large share of a small folder
NUM_SHOWN = 5


class UnreadableImagesError(ValueError):
    """Too many images cannot be read. The traceback that a worker adds is removed."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].rstrip())


class SkipUnreadable(BaseDataset):
    """Replace and count unreadable images.

    Only errors of the loading transform count. Each file has a byte of shared memory that any
    process may set, so it is counted once over all epochs and workers, forked or spawned. Each
    rank counts separately. ``max_unreadable`` is the share of images, in [0, 1], that may be
    unreadable; more, and more than 3, raise an error. With 0 the first one does.
    """

    def __init__(self, *args: Any, max_unreadable: float = 0.01, **kwargs: Any) -> None:
        if not 0 <= max_unreadable <= 1:
            owner = type(self).__name__
            raise ValueError(f'{owner}: max_unreadable must be in [0, 1]; got {max_unreadable!r}')
        self.max_unreadable = max_unreadable
        super().__init__(*args, **kwargs)

    def filter_data(self) -> Sequence:
        """Allocate the counters; ``full_init`` calls this."""
        self._is_unreadable = torch.zeros(len(self.data_list), dtype=torch.bool).share_memory_()
        return super().filter_data()

    @property
    def num_unreadable(self) -> int:
        """Number of unreadable files found so far by all worker processes."""
        return int(self._is_unreadable.sum())

    def name_sample(self, idx: int) -> str:
        """Return the name of a sample's file for messages."""
        return self.get_data_info(idx)['img_path']

    def prepare_data(self, idx: int) -> dict | None:
        """Run the pipeline on one sample; UnreadableImagesError if too many files are unreadable.

        For an unreadable file return the next readable sample with ``test_mode=True``, so that
        every run evaluates the same images, else None, which mmengine replaces by a random sample.
        """
        num_tries = len(self) if self.test_mode else 1
        tries = (self._run_pipeline((idx + offset) % len(self)) for offset in range(num_tries))
        return next((data for data in tries if data is not None), None)

    def _run_pipeline(self, idx: int) -> dict | None:
        data = self.get_data_info(idx)
        for transform in self.pipeline.transforms:
            is_load = isinstance(transform, LoadImageFromFile)
            try:
                if is_load and is_special_file(data.get('img_path') or ''):
                    raise OSError('a pipe, socket or device')
                data = transform(data)
            except ERRORS as error:
                if not is_load:
                    raise
                self._count_unreadable(idx, error)
                return None
            if data is None:
                return None
        return data

    def _count_unreadable(self, idx: int, error: Exception) -> None:
        is_new = not self._is_unreadable[idx]
        self._is_unreadable[idx] = True
        reason = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
        if isinstance(error, AssertionError):  # mmcv's message is the path alone
            reason = 'not an image, or an incomplete one'
        at_least = ALWAYS_ALLOWED if self.max_unreadable else 0
        count, limit = self.num_unreadable, max(int(self.max_unreadable * len(self)), at_least)
        # Not only for new files, so that every worker stops.
        if count > limit or count == len(self):
            numbers = self._is_unreadable.nonzero()[:NUM_SHOWN, 0].tolist()
            paths = '\n'.join(f'  {self.name_sample(number)}' for number in numbers)
            raise UnreadableImagesError(
                f'{count} of {len(self)} images cannot be read; {limit} are allowed '
                f'(max_unreadable={self.max_unreadable}). The first of them:\n{paths}\n'
                f'The last error was: {reason}. Replace or delete these files, or increase '
                'max_unreadable of the dataset.'
            ) from error
        if is_new and count <= NUM_SHOWN:
            more = '; further ones are not logged' if count == NUM_SHOWN else ''
            note = f'Skipped unreadable image: {self.name_sample(idx)} ({reason}){more}'
            MMLogger.get_current_instance().warning(note)


@DATASETS.register_module()
class CustomDataset(SkipUnreadable, UpstreamDataset):
    """mmpretrain's ``CustomDataset`` with unreadable images skipped and counted.

    For configs with an ``ann_file``, or images on a backend that is not a file system. Takes the
    arguments of mmpretrain's class and ``max_unreadable``.
    """
