"""Counts the files that cannot be decoded, over all worker processes of a dataset."""

import logging
from collections.abc import Sequence

import cv2
import torch
from mmengine.logging import print_log
from PIL import Image

# What reading and decoding raise for a bad file, and nothing a programming error raises.
# mmcv asserts when OpenCV returns None; Pillow's PNG reader raises SyntaxError.
UNREADABLE_ERRORS = (
    OSError,
    EOFError,
    AssertionError,
    SyntaxError,
    cv2.error,
    Image.DecompressionBombError,
)


class UnreadableFiles:
    """Notes unreadable files and stops the run when there are too many.

    One byte of shared memory per file, set to 1 by whichever process meets the file.
    Setting it twice changes nothing, so every file counts once: over all workers, over all
    epochs, with persistent workers or not, forked or spawned, and without a lock. Each rank
    of a distributed run counts for itself.

    Args:
        samples (Sequence[dict]): The dataset's samples, each with its ``img_path``.
        max_share (float): Share of them that may be unreadable before the run stops.
    """

    # A handful of bad files says nothing about a small folder: 1 of 50 would be 2 %.
    FLOOR = 3
    NUM_SHOWN = 5

    def __init__(self, samples: Sequence[dict], max_share: float) -> None:
        self.samples = samples
        self.max_share = max_share
        self.flags = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()  # (num_files,)

    @property
    def count(self) -> int:
        """How many files were found unreadable so far."""
        return int(self.flags.sum(dtype=torch.int64))

    @property
    def limit(self) -> int:
        """The largest count that is put up with."""
        if self.max_share == 0:
            return 0
        return max(int(self.max_share * len(self.flags)), self.FLOOR)

    def first_paths(self) -> list[str]:
        """Paths of the first few unreadable files."""
        numbers = self.flags.nonzero()[: self.NUM_SHOWN, 0].tolist()
        return [self.samples[number]['img_path'] for number in numbers]

    def note(self, number: int, error: Exception) -> None:
        """Note that a file could not be read.

        Args:
            number (int): The file's place in the dataset.
            error (Exception): What reading it raised.

        Raises:
            RuntimeError: If more files than ``limit``, or all there are, are unreadable.
        """
        is_new = not self.flags[number]
        self.flags[number] = 1
        count = self.count
        # Also asked about files met before, so that every worker stops, not one of them.
        if count > self.limit or count == len(self.flags):
            raise RuntimeError(self._describe(count, error)) from error
        if is_new and count <= self.NUM_SHOWN:
            more = '; further ones are counted in silence' if count == self.NUM_SHOWN else ''
            print_log(
                'Unreadable image skipped, another takes its place: '
                f'{self.samples[number]["img_path"]} ({_reason(error)}){more}',
                logger='current',
                level=logging.WARNING,
            )

    def _describe(self, count: int, error: Exception) -> str:
        listed = '\n'.join(f'  {path}' for path in self.first_paths())
        return (
            f'{count} of {len(self.flags)} images cannot be read; the run puts up with '
            f'{self.limit} (max_unreadable={self.max_share}). The first of them:\n{listed}\n'
            f'The last reason was: {_reason(error)}. Replace or delete these files, or raise '
            'max_unreadable of the dataset.'
        )


def _reason(error: Exception) -> str:
    if isinstance(error, AssertionError):  # mmcv repeats the path, and says no more
        return 'not an image, or an incomplete one'
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0]
