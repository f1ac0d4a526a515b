"""``ImageFolder``: the images below a folder or of a list, with or without labels."""

import os
import os.path as osp
from collections import Counter
from collections.abc import Sequence
from sys import intern

import numpy as np
from mmengine.dataset.base_dataset import force_full_init
from mmengine.logging import MMLogger
from mmpretrain.datasets import BaseDataset
from torch.utils.data import Dataset

from mmpatchmix.datasets.decode_image import EXTENSIONS
from mmpatchmix.datasets.image_list import (
    find_class_folders,
    find_split,
    hash_names,
    is_list,
    is_work_dir,
    read_image_list,
    walk,
)
from mmpatchmix.datasets.skip_unreadable import SkipUnreadable
from mmpatchmix.registry import DATASETS

LOOSE = 'images in no folder'
HOW_TO_SET = (
    'Set it with --data-root PATH, or with --cfg-options train_dataloader.dataset.data_root=PATH'
)
SHARDS = "type='mmpatchmix.ShardedImages' (docs/data.md)"


@DATASETS.register_module()
class ImageFolder(SkipUnreadable, BaseDataset):
    """All images below a folder, or of a list; also reads ImageNet-1K.

    Hidden files, folders of the system, work dirs of runs, pipes and devices are left out. With
    labels, the class is the top-level folder of an image, classes are sorted by name, and a folder
    without images counts as a class. ``metainfo`` has ``labelled``, ``split``, and, with labels,
    ``classes``; ``understood`` describes by topic what was found. Lists are text files of paths
    with optional labels and splits (:func:`read_image_list`); whole numbers are sorted as numbers.

    Args:
        data_root: The folder, or the parent of ``data_prefix``, or a list.
        data_prefix: Folder of the images below ``data_root``.
        labels: True, False, or 'auto': see :func:`find_class_folders`.
        split: 'train' or 'val': the folder of such a name ('Train', 'val2017', ...), or the lines
            of a list with that split. Without them, of labelled images 'val' takes a share and
            'train' the others, by a hash of the relative path; without labels both are all images.
        holdout: Share of the images in 'val', in (0, 1).
        extensions: File name endings of images, in any case.
        **kwargs: ``max_unreadable`` (:class:`SkipUnreadable`), and the arguments of mmpretrain's
            ``BaseDataset``: ``pipeline``, ``classes``, ...

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If an argument is out of range, the folder has no images, or ``labels=True`` and
            the images do not lie in two or more class folders.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | dict = '',
        labels: str | bool = 'auto',
        split: str | None = None,
        holdout: float = 0.05,
        extensions: Sequence[str] = EXTENSIONS,
        **kwargs,
    ) -> None:
        if not data_root and not data_prefix:
            raise ValueError(f'{type(self).__name__}: no image folder was given. {HOW_TO_SET}')
        ann_file = kwargs.pop('ann_file', '')
        for name, value, is_valid, wanted in (
            ('labels', labels, labels in ('auto', True, False), "'auto', True or False"),
            ('split', split, split in (None, 'train', 'val'), "None, 'train' or 'val'"),
            ('holdout', holdout, 0 < holdout < 1, 'in (0, 1)'),
            ('ann_file', ann_file, not ann_file, 'empty, or the type mmpatchmix.CustomDataset'),
        ):
            if not is_valid:
                raise ValueError(f'{type(self).__name__}: {name} must be {wanted}; got {value!r}')
        self.labels = labels
        self.split = split
        self.holdout = holdout
        self.extensions = tuple(ending.lower() for ending in extensions)
        self.understood: dict[str, str] = {}
        data_root = osp.expanduser(data_root)
        self.list_file = data_root if is_list(data_root) else None
        if self.list_file and data_prefix:
            raise ValueError(
                f'ImageFolder: data_prefix={data_prefix!r} is a folder below data_root, which is '
                f'the list {data_root}. Leave it out, as configs/patchmix_vit-s_folder.py does'
            )
        if self.list_file:
            data_root = osp.dirname(data_root) or '.'
        # Not serialised, because the array of load_data_list is smaller.
        kwargs |= dict(data_root=data_root, data_prefix=data_prefix, serialize_data=False)
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> np.ndarray:
        """Return the relative path and the label (-1: none) of each image, in one shared array."""
        # Read again by adopt_classes: from the folder that was given.
        self._given_prefix = getattr(self, '_given_prefix', self.img_prefix)
        self.data_prefix['img_path'] = self._given_prefix
        names, labels, is_split = self._read_list() if self.list_file else self._read_folder()
        self._metainfo.update(labelled=labels is not None, split=self.split)
        paths = np.array(encoded := os.fsencode('\0'.join(names)).split(b'\0'))
        data_list = np.empty(len(names), [('path', paths.dtype), ('label', np.int32)])
        data_list['path'], data_list['label'] = paths, -1 if labels is None else labels
        if labels is not None:
            self.understood.setdefault('labels', f'{len(self.CLASSES)} classes')
            if self.split and not is_split:
                return data_list[self._choose_split(hash_names(encoded))]
        return data_list

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return ``img_path``, ``sample_idx`` and, with labels, ``gt_label`` of one sample."""
        path, label = self._locate(self.data_list[idx])
        info = {'img_path': path, 'sample_idx': idx % len(self)}
        return info | {'gt_label': label} if label >= 0 else info

    def adopt_classes(self, classes: Sequence[str]) -> None:
        """Read again with the class list of the training set; see :func:`adopt_classes`."""
        if self.labels is False or (self.list_file and not self.metainfo['labelled']):
            return
        if not self.metainfo['labelled']:  # all images were taken, and still are
            self._given_prefix, self.split = self.img_prefix, None
        self.understood, self._metainfo['classes'] = {}, tuple(classes)
        self._fully_initialized = False
        self.full_init()

    def _locate(self, row: np.void) -> tuple[str, int]:
        """Return path and label of a row of the data list."""
        path, label = row
        return osp.join(self.img_prefix, os.fsdecode(path)), int(label)

    def _read_folder(self) -> tuple[list[str], list[int] | None, bool]:
        """Return paths, class numbers if any, and whether the paths are those of a split."""
        names, counts, is_split = self._enter_split(*self._list_files())
        has_classes = self.labels
        if has_classes == 'auto':
            found = find_class_folders(self.img_prefix, +counts, self.CLASSES or ())
            has_classes, self.understood['labels'] = found
        if not has_classes:
            self.understood.setdefault('labels', 'none (labels=False)')
            return names, None, is_split
        labels = [intern(name.partition('/')[0]) for name in names]
        if (num_loose := counts['']) or (len(set(labels)) < 2 and not self.CLASSES):
            found = f'{num_loose} lie in none' if num_loose else f'all are in {labels[0]}'
            raise ValueError(
                f'ImageFolder: labels=True needs the {len(names)} images of {self.img_prefix} in '
                f'two or more class folders, but {found}. Use labels=False, or set data_root to '
                'the folder of the class folders'
            )
        classes = sorted(name[:-1] for name in counts if name.count('/') == 1)
        return names, self._number_labels(labels, classes), is_split

    def _read_list(self) -> tuple[list[str], list[int] | None, bool]:
        """Do the same for a list."""
        names, labels, splits, self.understood['columns'] = read_image_list(self.list_file)
        if self.labels is True and labels is None:
            raise ValueError(f'ImageFolder: labels=True, but {self.list_file} has no labels')
        if labels is None or self.labels is False:
            self.understood['labels'] = 'none' if labels is None else 'none (labels=False)'
            labels = None
        classes = sorted(set(labels or ()))
        if all(label.isdecimal() for label in classes):
            classes.sort(key=int)
        if num_repeated := len(names) - len(set(names)):
            self.understood['repeated'] = f'{num_repeated} lines repeat an image'
        is_split = bool(splits and self.split)
        if is_split:
            rows = [row for row, split in enumerate(splits) if split == self.split]
            if not rows:
                raise ValueError(f'ImageFolder: no line of {self.list_file} is of {self.split!r}')
            self._note_held_out(len(rows), len(names), 'as the list says')
            names, labels = [names[row] for row in rows], labels and [labels[row] for row in rows]
        return names, labels and self._number_labels(labels, classes), is_split

    def _list_files(self) -> tuple[list[str], Counter]:
        """Return relative paths of the images, sorted, and the number of images in each folder.

        Folders are '' or end with '/'; those without images count 0.
        """
        root = self.img_prefix.rstrip('/') or '/'
        if not osp.isdir(root):
            found = f'{root}: a file; unpack archives first' if osp.exists(root) else root
            if root.endswith('.tar'):
                found += f', or read it as a shard: {SHARDS}'
            raise FileNotFoundError(f'ImageFolder: there is no folder {found}. {HOW_TO_SET}')
        names, counts, left_out = [], Counter(), {}
        for folder, files in walk(root, left_out):
            images = [name for name in files if name.lower().endswith(self.extensions)]
            names += [folder + name for name in images]
            counts[folder] = len(images)
            for name in sorted(set(files).difference(images)) if len(images) < len(files) else ():
                kind = osp.splitext(name)[1].lower() or 'no extension'
                left_out.setdefault(kind, []).append(folder + name)
        kinds = sorted(left_out.items(), key=lambda item: -len(item[1]))[:6]
        others = '; '.join(f'{len(each):,} x {kind}, such as {each[0]}' for kind, each in kinds)
        if others:
            self.understood['left out'] = others
        if not names:
            if '.tar' in left_out:
                others += f'. Tar files of images are read by {SHARDS}'
            wanted = ', '.join(sorted(self.extensions))
            raise ValueError(
                f'ImageFolder: no image in {root}. Searched for {wanted} at any depth; found '
                f'{others or "no file at all"}'
            )
        if is_work_dir(root):
            raise ValueError(
                f'ImageFolder: {root} is the work dir of a run, whose pictures would be read as '
                'images. Use another --work-dir, or move the files of the run (.lock and others)'
            )
        return sorted(names), counts

    def _enter_split(self, names: list[str], counts: Counter) -> tuple[list[str], Counter, bool]:
        """Restrict both to the folder of the split; also return whether there is such a folder."""
        totals = Counter()
        for folder, count in (+counts).items():
            totals[folder.partition('/')[0] or LOOSE] += count
        # The plain names first, test sets last.
        parts = sorted(totals, key=lambda name: ('te' in name.lower(), len(name), name))
        split_of = {find_split(name): name for name in reversed(parts)}
        train, val = split_of.get('train'), split_of.get('val')
        # A train folder beside others, none of them held out, may be a class.
        if self.split is None or train is None or (val is None and len(parts) > 1):
            return names, counts, False
        part = split_of.get(self.split, train)
        self.data_prefix['img_path'] = osp.join(self.img_prefix, part)
        if val:
            others = [name for name in parts if name not in (train, val)]
            unused = ''.join(f', {name} not used ({totals[name]:,} images)' for name in others)
            self.understood['folders'] = f'{train} is trained on, {val} held out{unused}'
        start = f'{part}/'
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        below = {key.removeprefix(start): n for key, n in counts.items() if key.startswith(start)}
        return inside, Counter(below), val is not None

    def _number_labels(self, labels: Sequence[str], found: Sequence[str]) -> list[int]:
        """Return class numbers; set ``metainfo['classes']`` to those found unless it is given."""
        source = self.list_file or self.img_prefix
        classes = self._metainfo.setdefault('classes', tuple(found))
        used = set(labels)
        if unknown := sorted(used.difference(classes)):
            raise ValueError(
                f'{type(self).__name__}: {source} has images of {", ".join(unknown[:5])}, and the '
                f'classes of the training set (or dataset.classes) are {", ".join(classes[:5])}'
                f'{", ..." if len(classes) > 5 else ""}. Rename, remove or also train on these'
            )
        if empty := sorted(set(classes) - used):
            MMLogger.get_current_instance().warning(
                f'{len(empty)} classes of {source} have no image: {", ".join(empty[:5])}'
            )
        number_of = {name: number for number, name in enumerate(classes)}
        return [number_of[label] for label in labels]

    def _choose_split(self, hashes: np.ndarray) -> np.ndarray:
        """Return the rows of the split: the hashes below ``holdout * 2**64`` are held out."""
        is_held_out, num_images = hashes / 2.0**64 < self.holdout, len(hashes)
        rows = np.flatnonzero(is_held_out == (self.split == 'val'))
        if len(rows) == 0:
            raise ValueError(
                f'{type(self).__name__}: holdout={self.holdout} of the {num_images} images of '
                f'{self.img_prefix} leaves none for split={self.split!r}. Change holdout, or use '
                'separate folders for training and validation'
            )
        self._note_held_out(len(rows), num_images, 'chosen by their names (dataset.holdout)')
        return rows

    def _note_held_out(self, num_chosen: int, num_images: int, reason: str) -> None:
        num_val = num_chosen if self.split == 'val' else num_images - num_chosen
        self.understood['held out'] = f'{num_val:,} of {num_images:,}, {reason}'


def adopt_classes(dataset: Dataset, metainfo: dict | None) -> None:
    """Let a data set number its classes as the ``metainfo`` of the training set does.

    Raises:
        ValueError: If a class with images is not in the list, or the data set is not of this
            package and has another list.
    """
    while 'dataset' in vars(dataset):  # a wrapper, such as mmengine's RepeatDataset
        dataset = dataset.dataset
    for part in vars(dataset).get('datasets', ()):  # of mmengine's ConcatDataset
        adopt_classes(part, metainfo)
    metas = metainfo, getattr(dataset, 'metainfo', None)
    classes, own = (tuple((meta or {}).get('classes') or ()) for meta in metas)
    if not classes or classes == own:
        return
    if isinstance(dataset, ImageFolder):
        dataset.adopt_classes(classes)
    elif isinstance(dataset, BaseDataset) and own and own != classes[: len(own)]:
        raise ValueError(
            f'{type(dataset).__name__} has the classes {own[:5]}, ..., and the training set '
            f'{classes[:5]}, ...: give both the same dataset.classes'
        )
