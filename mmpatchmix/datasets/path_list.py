"""The samples of an image folder in three arrays, however many files there are."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class PathList(Sequence):
    """Paths and labels that read like a list of sample dicts.

    A dict and two strings per file would take about 0.5 kB; here a file takes the length
    of its relative path and 12 bytes (ImageNet-1K: about 50 MB). Workers made by fork share
    the arrays and never copy them, since reading an array touches no reference counts.

    ``paths[i]`` is ``dict(img_path=str[, gt_label=int])``; a slice or a sequence of numbers
    gives a ``PathList``.

    Args:
        prefix (str): Folder that the relative paths start from.
        names (Iterable[str]): Relative paths, with '/' between the parts.
        labels (Iterable[int] | None): One label per path, or None without labels.
    """

    def __init__(
        self, prefix: str, names: Iterable[str], labels: Iterable[int] | None = None
    ) -> None:
        text, ends = bytearray(), array('q')
        for name in names:
            text += name.encode('utf-8', 'surrogateescape')
            ends.append(len(text))
        self.prefix = prefix.rstrip('/')
        self.text = np.frombuffer(text, np.uint8)  # (sum of lengths,)
        self.ends = np.array(ends, np.int64)  # (num_files,)
        self.labels = None if labels is None else np.fromiter(labels, np.int32, len(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def get_name(self, index: int) -> str:
        """Relative path of one file."""
        start = self.ends[index - 1] if index > 0 else 0
        return self.text[start : self.ends[index]].tobytes().decode('utf-8', 'surrogateescape')

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        if isinstance(index, Iterable):
            return self.select(index)
        index = range(len(self))[index]  # negative numbers, IndexError
        sample = {'img_path': f'{self.prefix}/{self.get_name(index)}'}
        if self.labels is not None:
            sample['gt_label'] = int(self.labels[index])
        return sample

    def select(self, indices: Iterable[int]) -> 'PathList':
        """The files of these numbers, in this order."""
        indices = [range(len(self))[index] for index in indices]
        labels = None if self.labels is None else self.labels[indices]
        return PathList(self.prefix, map(self.get_name, indices), labels)
