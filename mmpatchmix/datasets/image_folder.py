"""A folder of one's own images: flat or by class, labelled or not."""

import hashlib
import os
import os.path as osp
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from mmengine.dataset.base_dataset import force_full_init
from mmengine.logging import MMLogger

from mmpatchmix.datasets.skip_unreadable import SkipUnreadable
from mmpatchmix.registry import DATASETS

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
# Folders of these names are parts of a dataset, not classes.
SPLIT_NAMES = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing'))
HOW_TO_SET = (
    'Set it with --data-root PATH, or with --cfg-options train_dataloader.dataset.data_root=PATH'
)
SHARDS = "type='mmpatchmix.ShardedImages' (docs/data.md)"


@DATASETS.register_module()
class ImageFolder(SkipUnreadable):
    """All images below a folder; also the loader of ImageNet-1K.

    Hidden files and folders are left out. With labels, the class is the top-level folder
    an image lies in (at any depth), classes are sorted by name, and a folder without
    images still counts as a class, so that a train and a val folder agree. Without labels
    the samples have no ``gt_label``. ``metainfo`` tells what was found: ``labelled`` (bool),
    ``split``, and, with labels, ``classes``.

    Args:
        data_root: The folder, or the parent that ``data_prefix`` starts from.
        data_prefix: Folder of the images below ``data_root``.
        labels: True, False, or 'auto': labelled when every image lies exactly one level
            down, in two or more folders that are not named like splits ('train', 'val', ...).
        split: With labels, 'val' takes a share of the images and 'train' the others; which
            ones depends on a hash of the relative path only, not on a seed or on the other
            files. Without labels both are the whole folder.
        holdout: Share of the images in 'val', in (0, 1).
        max_unreadable: Share of files that may be unreadable, in [0, 1]; they are skipped and
            counted in ``num_unreadable``. More, and more than 3, stop the run. With 0 the
            first one does.
        extensions: File name endings of images, in any case.
        **kwargs: As in mmpretrain's ``BaseDataset``: ``pipeline``, ``classes``, ...

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If an argument is out of its range, the folder has no images, or
            ``labels=True`` and the images do not lie in two or more class folders.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | dict = '',
        labels: str | bool = 'auto',
        split: str | None = None,
        holdout: float = 0.05,
        max_unreadable: float = 0.01,
        extensions: Sequence[str] = EXTENSIONS,
        **kwargs,
    ) -> None:
        if not data_root and not data_prefix:
            raise ValueError(f'{type(self).__name__}: no image folder was given. {HOW_TO_SET}')
        ann_file = kwargs.pop('ann_file', '')
        for name, value, is_good, wanted in (
            ('labels', labels, labels in ('auto', True, False), "'auto', True or False"),
            ('split', split, split in (None, 'train', 'val'), "None, 'train' or 'val'"),
            ('holdout', holdout, 0 < holdout < 1, 'in (0, 1)'),
            ('max_unreadable', max_unreadable, 0 <= max_unreadable <= 1, 'in [0, 1]'),
            (
                'ann_file',
                ann_file,
                not ann_file,
                "left out: mmpretrain's CustomDataset reads lists",
            ),
        ):
            if not is_good:
                raise ValueError(f'{type(self).__name__}: {name} must be {wanted}; got {value!r}')
        self.labels = labels
        self.split = split
        self.holdout = holdout
        self.max_unreadable = max_unreadable
        self.extensions = tuple(ending.lower() for ending in extensions)
        super().__init__(
            ann_file='',
            data_root=osp.expanduser(data_root),
            data_prefix=data_prefix,
            serialize_data=False,  # the array of load_data_list is smaller
            **kwargs,
        )

    def load_data_list(self) -> np.ndarray:
        """Return the relative path and the label (-1 without labels) of each image.

        One array, which the workers share: per image it takes the bytes of the longest path
        and 4 more.
        """
        names, folders = self._list_images()
        labelled = self.labels is True or (self.labels == 'auto' and self._looks_labelled(names))
        self._metainfo.update(labelled=labelled, split=self.split)
        if labelled:
            number_of = self._number_classes(names, folders)
            names = self._take_split(names)
        paths = np.array([os.fsencode(name) for name in names])
        data_list = np.empty(len(names), [('path', paths.dtype), ('label', np.int32)])
        data_list['path'] = paths
        data_list['label'] = [number_of[_top(name)] for name in names] if labelled else -1
        return data_list

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return ``img_path``, ``sample_idx`` and, with labels, ``gt_label`` of one sample."""
        path, label = self.data_list[idx]
        path = osp.join(self.img_prefix, os.fsdecode(path))
        info = {'img_path': path, 'sample_idx': idx % len(self)}
        return info | {'gt_label': int(label)} if label >= 0 else info

    def _list_images(self) -> tuple[list[str], list[str]]:
        """Return relative paths of the images and names of the top-level folders, sorted."""
        root = self.img_prefix.rstrip('/') or '/'
        if not osp.isdir(root):
            what = f'{root} is a file: unpack archives first' if osp.exists(root) else root
            if root.endswith('.tar'):
                what += f', or read it as a shard: {SHARDS}'
            raise FileNotFoundError(f'ImageFolder: there is no folder {what}. {HOW_TO_SET}')
        found = list(_walk(root))
        folders = [name[:-1] for name in found if name.find('/') == len(name) - 1]
        names = [name for name in found if name.lower().endswith(self.extensions)]
        if not names:
            endings = Counter(
                osp.splitext(name)[1].lower() or 'no extension' for name in found if name[-1] != '/'
            )
            counts = ', '.join(f'{count} x {ending}' for ending, count in endings.most_common(5))
            if '.tar' in endings:
                counts += f'. Tar files of images are read by {SHARDS}'
            raise ValueError(
                f'ImageFolder: no image in {root}. Looked for {", ".join(sorted(self.extensions))} '
                f'at any depth; found {counts or "no file at all"}'
            )
        return sorted(names), sorted(folders)

    def _looks_labelled(self, names: list[str]) -> bool:
        if any(name.count('/') != 1 for name in names):
            return False
        folders = {_top(name) for name in names}
        if folders <= SPLIT_NAMES:
            MMLogger.get_current_instance().warning(
                f'{self.img_prefix} holds {", ".join(sorted(folders))}: taken as parts of one '
                "unlabelled set. Use one of them with data_prefix='train'; labels=True makes "
                'them classes'
            )
            return False
        return len(folders) >= 2

    def _number_classes(self, names: list[str], folders: list[str]) -> dict[str, int]:
        """Return the number of each class folder; set ``metainfo['classes']``."""
        loose = [name for name in names if '/' not in name]
        used = {_top(name) for name in names}
        if loose or len(used) < 2:
            where = (
                f'{len(loose)} lie in none, such as {loose[0]}' if loose else f'all in {min(used)}'
            )
            raise ValueError(
                f'ImageFolder: labels=True needs the {len(names)} images of {self.img_prefix} in '
                f'two or more class folders, but {where}. Use labels=False, or point data_root at '
                'the folder that holds the class folders'
            )
        classes = self._metainfo.setdefault('classes', tuple(folders))
        unknown = sorted(used - set(classes))
        if unknown:
            raise ValueError(
                f'ImageFolder: {self.img_prefix} has folders that are not in the given classes: '
                f'{", ".join(unknown[:5])}. Leave classes out to take them from the folder names'
            )
        empty = sorted(set(classes) - used)
        if empty:
            MMLogger.get_current_instance().warning(
                f'{len(empty)} classes of {self.img_prefix} have no image: {", ".join(empty[:5])}'
            )
        return {name: number for number, name in enumerate(classes)}

    def _take_split(self, names: list[str]) -> list[str]:
        if self.split is None:
            return names
        is_val = self.split == 'val'
        taken = [name for name in names if (hash_name(name) / 2**64 < self.holdout) == is_val]
        self._check_split(len(taken), len(names))
        return taken

    def _check_split(self, num_taken: int, num_images: int) -> None:
        if num_taken == 0:
            raise ValueError(
                f'{type(self).__name__}: holdout={self.holdout} of the {num_images} images of '
                f'{self.img_prefix} leaves none for split={self.split!r}. Change holdout, or use '
                'separate folders for training and validation'
            )


def _walk(root: str, folder: str = '', above: tuple = ()) -> Iterator[str]:
    """Yield relative paths of all files and, with '/' at the end, of all folders.

    Linked folders are followed, but not back to one that they lie in: that would never end.
    """
    status = os.stat(osp.join(root, folder))
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    if folder:
        yield folder
    with os.scandir(osp.join(root, folder)) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            # A link is asked by its path: its entry raises where it leads to itself.
            if osp.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from _walk(root, f'{folder}{entry.name}/', (*above, here))
            else:
                yield folder + entry.name


def _top(name: str) -> str:
    return name.split('/', 1)[0]


def hash_name(name: str) -> int:
    """Return a number in [0, 2**64) that depends on the name only, evenly spread over names."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, 'big')
