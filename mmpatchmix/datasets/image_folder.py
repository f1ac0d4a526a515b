"""A folder or a list of one's own images: flat or by class, labelled or not."""

import os
import os.path as osp
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from mmengine.dataset.base_dataset import force_full_init
from mmengine.logging import MMLogger

from mmpatchmix.datasets.image_list import (
    hash_name,
    is_list,
    list_folders,
    number_labels,
    read_image_list,
    walk,
)
from mmpatchmix.datasets.skip_unreadable import SkipUnreadable
from mmpatchmix.registry import DATASETS

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
# Folders of these names are parts of a dataset, not classes.
TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'valid', 'validation', 'test', 'testing')  # the first of these that is there
SPLIT_NAMES = frozenset(TRAIN_NAMES + VAL_NAMES)
NUMBERED_PART = re.compile(
    r'(part|shard|chunk|batch|block|bucket|dir|disk|folder|fold|set|split|vol|volume)s?[-_. ]?\d+',
    re.IGNORECASE,
)
HOW_TO_SET = (
    'Set it with --data-root PATH, or with --cfg-options train_dataloader.dataset.data_root=PATH'
)
SHARDS = "type='mmpatchmix.ShardedImages' (docs/data.md)"


@DATASETS.register_module()
class ImageFolder(SkipUnreadable):
    """All images below a folder, or of a list; also the loader of ImageNet-1K.

    Hidden files and folders are left out. With labels, the class is the top-level folder
    an image lies in (at any depth), classes are sorted by name, and a folder without
    images still counts as a class, so that a train and a val folder agree. Without labels
    the samples have no ``gt_label``. ``metainfo`` tells what was found: ``labelled`` (bool),
    ``split``, and, with labels, ``classes``; ``understood`` tells it in words, with the reasons.

    A list is a ``.csv`` of path, perhaps label, perhaps split ('train' or 'val'), with or without
    a line that names them, or a ``.txt`` of paths; paths are relative to the list. What it names
    is read whatever its ending. Labels that are whole numbers are sorted as numbers.

    Args:
        data_root: The folder, or the parent that ``data_prefix`` starts from, or a list.
        data_prefix: Folder of the images below ``data_root``.
        labels: True, False, or 'auto': labelled when every image lies exactly one level
            down, in two or more folders that are not named like splits ('train', 'val', ...).
        split: 'train' or 'val': the folder of that name where images lie in folders such as
            train and val, or the lines of a list that say so. Otherwise, with labels, 'val'
            takes a share of the images and 'train' the others; which ones depends on a hash of
            the relative path only, not on a seed or on the other files. Without labels both
            are the whole folder.
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
                "left out: type='mmpatchmix.CustomDataset' reads annotation files",
            ),
        ):
            if not is_good:
                raise ValueError(f'{type(self).__name__}: {name} must be {wanted}; got {value!r}')
        self.labels = labels
        self.split = split
        self.holdout = holdout
        self.max_unreadable = max_unreadable
        self.extensions = tuple(ending.lower() for ending in extensions)
        self.understood: dict[str, str] = {}  # what was found, in words
        data_root = osp.expanduser(data_root)
        self.list_file = data_root if is_list(data_root) else None
        if self.list_file:
            if data_prefix:
                raise ValueError(
                    f'ImageFolder: data_prefix={data_prefix!r} is a folder below data_root, which '
                    f'is the list {data_root}. Leave it out, as configs/patchmix_vit-s_folder.py '
                    'does'
                )
            data_root = osp.dirname(data_root) or '.'
        super().__init__(
            ann_file='',
            data_root=data_root,
            data_prefix=data_prefix,
            serialize_data=False,  # the array of load_data_list is smaller
            **kwargs,
        )

    def load_data_list(self) -> np.ndarray:
        """Return the relative path and the label (-1 without labels) of each image.

        One array, which the workers share: per image it takes the bytes of the longest path
        and 4 more.
        """
        names, labels = self._read_list() if self.list_file else self._read_folder()
        paths = np.array([os.fsencode(name) for name in names])
        data_list = np.empty(len(names), [('path', paths.dtype), ('label', np.int32)])
        data_list['path'], data_list['label'] = paths, labels
        return data_list

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return ``img_path``, ``sample_idx`` and, with labels, ``gt_label`` of one sample."""
        path, label = self.data_list[idx]
        path = osp.join(self.img_prefix, os.fsdecode(path))
        info = {'img_path': path, 'sample_idx': idx % len(self)}
        return info | {'gt_label': int(label)} if label >= 0 else info

    def _read_folder(self) -> tuple[list[str], list[int] | int]:
        """Return relative paths and class numbers; -1 without labels."""
        names, folders = self._list_images()
        names, folders, is_split = self._enter_split(names, folders)
        labelled = self.labels is True or (self.labels == 'auto' and self._looks_labelled(names))
        self._metainfo.update(labelled=labelled, split=self.split)
        if not labelled:
            self.understood.setdefault('labels', f'none (labels={self.labels})')
            return names, -1
        number_of = self._number_classes(names, folders)
        self.understood.setdefault('labels', f'{len(number_of)} folders are classes (labels=True)')
        if not is_split:
            names = self._take_split(names)
        return names, [number_of[_top(name)] for name in names]

    def _read_list(self) -> tuple[list[str], list[int] | int]:
        """Return paths and class numbers of the list; -1 without labels."""
        names, labels, splits = read_image_list(self.list_file)
        labelled = labels is not None and self.labels is not False
        if self.labels is True and not labelled:
            raise ValueError(f'ImageFolder: labels=True, but {self.list_file} has no labels')
        self._metainfo.update(labelled=labelled, split=self.split)
        classes = self._metainfo.setdefault('classes', number_labels(labels)) if labelled else ()
        if unknown := sorted(set(labels or ()) - set(classes)) if labelled else ():
            raise ValueError(
                f'ImageFolder: {self.list_file} has labels that are not in the given classes: '
                f'{", ".join(unknown[:5])}'
            )
        number_of = {name: number for number, name in enumerate(classes)}
        self.understood['labels'] = f'{len(classes)} classes of the list' if labelled else 'none'
        if labels is not None and not labelled:
            self.understood['labels'] = 'none (labels=False; the list has some)'
        if num_again := len(names) - len(set(names)):
            self.understood['repeated'] = f'{num_again} lines of the list name an image again'
        if splits and self.split:
            rows = [row for row, split in enumerate(splits) if split == self.split]
            if not rows:
                raise ValueError(f'ImageFolder: no line of {self.list_file} is of {self.split!r}')
            self._tell_split(len(names) - len(rows), len(names), 'as the list says')
        elif labelled:
            taken = set(self._take_split(names))
            rows = [row for row, name in enumerate(names) if name in taken]
        else:
            rows = range(len(names))
        numbers = [number_of[labels[row]] for row in rows] if labelled else -1
        return [names[row] for row in rows], numbers

    def _enter_split(
        self, names: list[str], folders: list[str]
    ) -> tuple[list[str], list[str], bool]:
        """Keep to the folder of the split, where there are such folders; True if so."""
        parts = sorted({_top(name) for name in names})
        train = next((part for part in TRAIN_NAMES if part in parts), None)
        if self.split is None or train is None or not SPLIT_NAMES.issuperset(parts):
            return names, folders, False
        val = next((part for part in VAL_NAMES if part in parts), None)
        part = val if val and self.split == 'val' else train
        inside = [name.removeprefix(f'{part}/') for name in names if _top(name) == part]
        self.data_prefix['img_path'] = osp.join(self.img_prefix, part)
        if val:
            self.understood['folders'] = f'{train} is trained on, {val} held out' + ''.join(
                f', {each} left alone' for each in parts if each not in (train, val)
            )
        return inside, list_folders(self.img_prefix), val is not None

    def _list_images(self) -> tuple[list[str], list[str]]:
        """Return relative paths of the images and names of the top-level folders, sorted."""
        root = self.img_prefix.rstrip('/') or '/'
        if not osp.isdir(root):
            what = f'{root} is a file: unpack archives first' if osp.exists(root) else root
            if root.endswith('.tar'):
                what += f', or read it as a shard: {SHARDS}'
            raise FileNotFoundError(f'ImageFolder: there is no folder {what}. {HOW_TO_SET}')
        found = list(walk(root))
        folders = [name[:-1] for name in found if name.find('/') == len(name) - 1]
        names = [name for name in found if name.lower().endswith(self.extensions)]
        endings = Counter(
            osp.splitext(name)[1].lower() or 'no extension'
            for name in found
            if name[-1] != '/' and not name.lower().endswith(self.extensions)
        )
        counts = ', '.join(f'{count:,} x {ending}' for ending, count in endings.most_common(5))
        if counts:
            self.understood['left out'] = f'{counts}, by their endings (dataset.extensions)'
        if not names:
            if '.tar' in endings:
                counts += f'. Tar files of images are read by {SHARDS}'
            raise ValueError(
                f'ImageFolder: no image in {root}. Looked for {", ".join(sorted(self.extensions))} '
                f'at any depth; found {counts or "no file at all"}'
            )
        return sorted(names), sorted(folders)

    def _looks_labelled(self, names: list[str]) -> bool:
        folders = sorted({_top(name) for name in names})
        if any(name.count('/') != 1 for name in names):
            flat = all('/' not in name for name in names)
            why = 'images lie in no folder' if flat else 'images lie at several depths'
        elif SPLIT_NAMES.issuperset(folders):
            why = f'{", ".join(folders)} are parts of a set'
            MMLogger.get_current_instance().warning(
                f'{self.img_prefix} holds {", ".join(folders)}: taken as parts of one '
                "unlabelled set. Use one of them with data_prefix='train'; labels=True makes "
                'them classes'
            )
        elif len(folders) < 2:
            why = f'all images lie in {folders[0]}'
        elif all(NUMBERED_PART.fullmatch(name) for name in folders):
            why = f'{_shorten(folders)} are numbered parts; labels=True makes them classes'
        else:
            doubt = all(name.isdecimal() for name in folders)
            note = '  <- only numbered: labels=False if they are no classes' if doubt else ''
            self.understood['labels'] = (
                f'{len(folders)} folders are classes: {_shorten(folders)}{note}'
            )
            return True
        self.understood['labels'] = f'none: {why}'
        return False

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
        why = 'chosen by their names (dataset.holdout)'
        self._tell_split(len(names) - len(taken), len(names), why)
        return taken

    def _check_split(self, num_taken: int, num_images: int) -> None:
        if num_taken == 0:
            raise ValueError(
                f'{type(self).__name__}: holdout={self.holdout} of the {num_images} images of '
                f'{self.img_prefix} leaves none for split={self.split!r}. Change holdout, or use '
                'separate folders for training and validation'
            )

    def _tell_split(self, num_others: int, num_all: int, why: str) -> None:
        num_val = num_all - num_others if self.split == 'val' else num_others
        self.understood['held out'] = f'{num_val:,} of {num_all:,}, {why}'


def _shorten(names: list[str]) -> str:
    return ', '.join(names[:4]) + (' ...' if len(names) > 4 else '')


def _top(name: str) -> str:
    return name.split('/', 1)[0]
