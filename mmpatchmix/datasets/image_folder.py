"""A folder of one's own images: flat or by class, labelled or not."""

import hashlib
import logging
import os.path as osp
from collections import Counter
from collections.abc import Sequence

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset.base_dataset import force_full_init
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset

from mmpatchmix.datasets.path_list import PathList
from mmpatchmix.datasets.unreadable import UNREADABLE_ERRORS, UnreadableFiles
from mmpatchmix.registry import DATASETS

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
# Folders of these names are parts of a dataset, not classes.
SPLIT_NAMES = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing'))
HOW_TO_SET = (
    'Set it with --data-root PATH, or with --cfg-options train_dataloader.dataset.data_root=PATH'
)


@DATASETS.register_module()
class ImageFolder(CustomDataset):
    """All images below a folder; also the loader of ImageNet-1K.

    Hidden files and folders are left out. With labels, the class is the top-level folder
    an image lies in (at any depth), classes are sorted by name, and a folder without
    images still counts as a class, so that a train and a val folder agree. Without labels
    the samples have no ``gt_label``, which mmpretrain's ``PackInputs`` and our
    ``PackViews`` take as they are.

    ``metainfo`` tells what was found: ``labelled`` (bool), ``split``, and, with labels,
    ``classes``.

    A file that cannot be decoded is skipped and another one takes its place: a random one
    in training, the next one with ``test_mode=True``, where every run should see the same.
    Such files are counted (``num_unreadable``) once each over all worker processes; more
    than ``max_unreadable`` of the dataset's files, and more than 3, stop the run (in a
    distributed run each rank counts for itself). Incomplete files are unreadable too, to
    OpenCV 4.12 as to Pillow. Errors of the other transforms are never taken for a bad file.

    Args:
        data_root (str): The folder, or the parent that ``data_prefix`` starts from.
        data_prefix (str | dict): Folder of the images below ``data_root``.
        labels (str | bool): True, False, or 'auto': labelled when every image lies exactly
            one level down, in two or more folders that are not named like splits
            ('train', 'val', ...).
        split (str | None): With labels, 'val' takes a share of the images and 'train' the
            others; which ones depends on a hash of the relative path only, not on a seed
            or on the other files. Without labels both are the whole folder.
        holdout (float): Share of the images in 'val', in (0, 1).
        max_unreadable (float): Share of unreadable files to put up with, in [0, 1]. With 0
            the first one stops the run.
        extensions (Sequence[str]): File name endings of images, in any case.
        **kwargs: As in mmpretrain's ``CustomDataset``: ``pipeline``, ``classes``, ...

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
            raise ValueError(f'ImageFolder: no image folder was given. {HOW_TO_SET}')
        if labels not in ('auto', True, False):
            raise ValueError(f"ImageFolder: labels must be 'auto', True or False, got {labels!r}")
        if split not in (None, 'train', 'val'):
            raise ValueError(f"ImageFolder: split must be None, 'train' or 'val', got {split!r}")
        if not 0 < holdout < 1:
            raise ValueError(f'ImageFolder: holdout must lie in (0, 1), got {holdout!r}')
        if not 0 <= max_unreadable <= 1:
            raise ValueError(
                f'ImageFolder: max_unreadable must lie in [0, 1], got {max_unreadable!r}'
            )
        for name in ('ann_file', 'with_label', 'serialize_data'):
            if name in kwargs:
                raise ValueError(
                    f'ImageFolder does not take {name}: it reads the folder itself. For a list '
                    "of files use mmpretrain's CustomDataset"
                )
        self.labels = labels
        self.split = split
        self.holdout = holdout
        self.max_unreadable = max_unreadable
        super().__init__(
            data_root=osp.expanduser(data_root),
            data_prefix=data_prefix,
            extensions=extensions,
            # PathList is already as compact as the serialised form.
            serialize_data=False,
            **kwargs,
        )

    def full_init(self) -> None:
        """Scan the folder, and set up the count of unreadable files."""
        if self._fully_initialized:
            return
        super().full_init()
        self._count_unreadable()

    def _count_unreadable(self) -> None:
        self.unreadable = UnreadableFiles(self.data_list, self.max_unreadable)

    @property
    def num_unreadable(self) -> int:
        """Number of files found unreadable so far, over all worker processes."""
        return self.unreadable.count

    def load_data_list(self) -> PathList:
        """Scan the folder; called once, by ``full_init``."""
        names = self._list_images()
        with_label = self.labels is True or (self.labels == 'auto' and self._looks_labelled(names))
        self.with_label = with_label
        self._metainfo.update(labelled=with_label, split=self.split)
        if not with_label:
            return PathList(self.img_prefix, names)
        class_index = self._find_classes(names)
        if self.split is not None:
            names = self._take_split(names)
        return PathList(self.img_prefix, names, (class_index[_top(name)] for name in names))

    def _list_images(self) -> list[str]:
        """Relative paths of the images, sorted, '/' between the parts."""
        root = self.img_prefix.rstrip('/') or '/'
        backend = get_file_backend(root, enable_singleton=True)
        if not backend.exists(root):
            raise FileNotFoundError(f'ImageFolder: there is no folder {root}. {HOW_TO_SET}')
        if not backend.isdir(root):
            raise ValueError(
                f'ImageFolder: {root} is a file. Give the folder of images; unpack archives first'
            )
        names, others = [], Counter()
        for name in backend.list_dir_or_file(root, list_dir=False, recursive=True):
            name = name.replace('\\', '/')
            if any(part.startswith('.') for part in name.split('/')):
                continue
            if self.is_valid_file(name):
                names.append(name)
            else:
                others[osp.splitext(name)[1].lower() or 'no extension'] += 1
        if not names:
            found = ', '.join(f'{count} x {ending}' for ending, count in others.most_common(5))
            raise ValueError(
                f'ImageFolder: no image in {root}. Looked for {", ".join(sorted(self.extensions))} '
                f'at any depth; found {found or "no file at all"}'
            )
        names.sort()
        return names

    def _looks_labelled(self, names: list[str]) -> bool:
        if any(name.count('/') != 1 for name in names):
            return False
        folders = {_top(name) for name in names}
        if folders <= SPLIT_NAMES:
            print_log(
                f'{self.img_prefix} holds {", ".join(sorted(folders))}: taken as parts of one '
                "unlabelled set. Use one of them with data_prefix='train'; labels=True makes "
                'them classes',
                logger='current',
                level=logging.WARNING,
            )
            return False
        return len(folders) >= 2

    def _find_classes(self, names: list[str]) -> dict[str, int]:
        """Number of each class folder; sets ``metainfo['classes']``."""
        loose = [name for name in names if '/' not in name]
        if loose:
            raise ValueError(
                f'ImageFolder: labels=True, but {len(loose)} images lie in no class folder, such '
                f'as {self.img_prefix}/{loose[0]}. Move them into class folders, or use '
                'labels=False'
            )
        used = {_top(name) for name in names}
        if len(used) < 2:
            raise ValueError(
                f'ImageFolder: labels=True, but all {len(names)} images lie in one class folder, '
                f'{self.img_prefix}/{min(used)}. Labels need two or more; use labels=False, or '
                'point data_root at the folder that holds the class folders'
            )
        backend = get_file_backend(self.img_prefix, enable_singleton=True)
        folders = backend.list_dir_or_file(self.img_prefix, list_file=False)
        folders = {folder for folder in folders if not folder.startswith('.')}
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(sorted(folders))
        unknown = sorted(used - set(self.CLASSES))
        if unknown:
            raise ValueError(
                f'ImageFolder: {self.img_prefix} has folders that are not in the given classes: '
                f'{", ".join(unknown[:5])}. Leave classes out to take them from the folder names'
            )
        empty = sorted(set(self.CLASSES) - used)
        if empty:
            print_log(
                f'{len(empty)} classes of {self.img_prefix} have no image: {", ".join(empty[:5])}',
                logger='current',
                level=logging.WARNING,
            )
        return {name: index for index, name in enumerate(self.CLASSES)}

    def _take_split(self, names: list[str]) -> list[str]:
        is_val = self.split == 'val'
        taken = [name for name in names if (_hash_share(name) < self.holdout) == is_val]
        if not taken:
            raise ValueError(
                f'ImageFolder: holdout={self.holdout} of the {len(names)} images of '
                f'{self.img_prefix} leaves none for split={self.split!r}. Change holdout, or use '
                'separate folders for training and validation'
            )
        return taken

    def prepare_data(self, idx: int) -> dict | None:
        """Run the pipeline on one sample; an unreadable file gives None in training."""
        while True:
            try:
                return self._run_pipeline(self.get_data_info(idx))
            except _UnreadableError as error:
                # Raises once there are too many, so the loop below ends.
                self.unreadable.note(idx % len(self), error.__cause__)
            if not self.test_mode:
                return None
            idx = (idx + 1) % len(self)

    def _run_pipeline(self, data: dict) -> dict | None:
        for transform in self.pipeline.transforms:
            if isinstance(transform, LoadImageFromFile):
                try:
                    data = transform(data)
                except UNREADABLE_ERRORS as error:
                    raise _UnreadableError from error
            else:
                data = transform(data)
            if data is None:
                return None
        return data

    @force_full_init
    def get_subset_(self, indices: Sequence[int] | int) -> None:
        """As in ``BaseDataset``; the count of unreadable files starts anew."""
        super().get_subset_(indices)
        self._count_unreadable()

    @force_full_init
    def get_subset(self, indices: Sequence[int] | int) -> 'ImageFolder':
        """As in ``BaseDataset``; the subset counts unreadable files by itself."""
        subset = super().get_subset(indices)
        subset._count_unreadable()
        return subset


class _UnreadableError(Exception):
    """Tells a bad file from any other error of the pipeline."""


def _top(name: str) -> str:
    return name.split('/', 1)[0]


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name only, evenly spread over names."""
    digest = hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).digest()
    return int.from_bytes(digest, 'big') / 2**64
