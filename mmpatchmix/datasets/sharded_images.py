"""Images in tar shards, in the format of the webdataset library."""

import os
import os.path as osp
import tarfile

import numpy as np
from mmengine.dataset.base_dataset import force_full_init
from mmengine.logging import MMLogger

from mmpatchmix.datasets.image_folder import ImageFolder
from mmpatchmix.datasets.shard_index import (
    ShardIndex,
    fetch_shards,
    list_shards,
    name_part,
    one_at_a_time,
    read_index,
)
from mmpatchmix.registry import DATASETS

HELD = ['offset', 'size', 'shard', 'label']  # in memory: 20 bytes per image


@DATASETS.register_module()
class ShardedImages(ImageFolder):
    """Images in tar shards; takes the place of :class:`ImageFolder`.

    A sample is an image and, with labels, the number of its class: ``KEY.jpg`` and ``KEY.cls``,
    as ``mmpatchmix pack-shards`` and the webdataset library write them. Other members are left
    alone. Where each image lies is found at the first start and kept in an index file, so images
    are read in any order, each in one piece: epochs, ranks, workers and resuming are those of
    every data set with a length. ``metainfo`` is as for a folder; ``classes`` only where
    ``pack-shards`` noted them or the argument names them.

    Remote shards (URLs of mmengine's file backends) are copied into ``cache_dir`` at the first
    start. A copy that is there is taken as it is.

    Args:
        data_root: The folder of the tar files, or their path or URL with ranges
            (``train-{000000..000009}.tar``) or, for local ones, wildcards.
        data_prefix: Joined to ``data_root``: the folder or pattern below it.
        labels: True, False, or 'auto': labelled when every image has a class.
        split: As for :class:`ImageFolder`. Shards of ``pack-shards`` hold out the very images
            that their folder does; others go by the key.
        cache_dir: Folder of the copies of remote shards, and of the index file. By default
            ``$PATCHMIX_CACHE``, and without that the index file lies beside the shards.
        backend_args: Of the file backend that copies remote shards; by default the URL chooses.
        **kwargs: As for :class:`ImageFolder`.

    Raises:
        FileNotFoundError: If there are no shards, or one of a range is missing.
        ConnectionError: If a remote shard cannot be copied.
        ValueError: If a shard is damaged or refused, an argument is out of its range, there is
            no image, or the labels are not those that were asked for.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | dict = '',
        cache_dir: str | None = None,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        cache_dir = cache_dir or os.environ.get('PATCHMIX_CACHE')
        self.cache_dir = cache_dir and osp.abspath(osp.expanduser(cache_dir))
        self.backend_args = backend_args
        super().__init__(data_root, data_prefix, **kwargs)

    def load_data_list(self) -> np.ndarray:
        """Return offset, size, shard and label (-1 without labels) of each image: ``HELD``."""
        samples, classes = self._read_index()
        labelled = self.labels is not False and self._has_labels(samples['label'])
        self._metainfo.update(labelled=labelled, split=self.split)
        if labelled:
            self._check_classes(samples['label'], classes)
            samples = self._take_split(samples)
        data_list = np.empty(len(samples), [(name, samples.dtype[name]) for name in HELD])
        for name in HELD:
            data_list[name] = samples[name]
        if not labelled:
            data_list['label'] = -1
        return data_list

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Return ``img_path``, ``sample_idx`` and, with labels, ``gt_label`` of one sample."""
        offset, size, shard, label = self.data_list[idx].item()
        path = name_part(self.shards[shard], offset, size)
        info = {'img_path': path, 'sample_idx': idx % len(self)}
        return info | {'gt_label': label} if label >= 0 else info

    def name_sample(self, idx: int) -> str:
        """Return shard and member of a sample; the header before the image has its name."""
        offset, _, shard, _ = self.data_list[idx].item()
        path = self.shards[shard]
        try:
            with open(path, 'rb') as file:
                file.seek(offset - tarfile.BLOCKSIZE)
                header = file.read(tarfile.BLOCKSIZE)
            name = tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name
        except (OSError, tarfile.TarError):  # the shard was replaced or is damaged
            name = f'at byte {offset}'
        return f'{path}: {name}'

    def _join_prefix(self) -> None:
        """Join root and prefix, of URLs as well; mmengine's would ask the backend to."""
        path = osp.join(self.data_root, self.data_prefix['img_path'])
        self.data_prefix['img_path'] = path.rstrip('/')

    def _read_index(self) -> ShardIndex:
        """Find the shards, copy remote ones, and return where their images lie."""
        paths = list_shards(self.img_prefix)
        is_remote = '://' in self.img_prefix
        if is_remote and not self.cache_dir:
            raise ValueError(
                f'{self.img_prefix} is remote: say where the copies go, with PATCHMIX_CACHE=FOLDER '
                'before the command or cache_dir of the data set. It needs room for all shards'
            )
        if self.cache_dir:
            os.makedirs(self.cache_dir, exist_ok=True)
        # Ranks of one machine start together; the first one works, the others find its files.
        with one_at_a_time(self.cache_dir or osp.dirname(paths[0])):
            if is_remote:
                paths = fetch_shards(paths, self.cache_dir, self.backend_args)
            index = read_index(paths, self.extensions, self.cache_dir)
        self.shards = paths
        if len(index.samples) == 0:
            raise ValueError(
                f'ShardedImages: no image in the {len(paths)} shards of {self.img_prefix}. Looked '
                f'for members ending in {", ".join(sorted(self.extensions))}'
            )
        return index

    def _has_labels(self, labels: np.ndarray) -> bool:
        """Tell whether all images have a class; labels=True insists on it."""
        num_without = int((labels < 0).sum())
        if num_without == 0:
            return True
        message = (
            f'{num_without} of the {len(labels)} images in {self.img_prefix} have no .cls beside '
            'them'
        )
        if self.labels is True:
            raise ValueError(
                f'ShardedImages: labels=True, but {message}. Use labels=False, or pack classes'
            )
        if num_without < len(labels):
            MMLogger.get_current_instance().warning(f'{message}: all are taken as unlabelled')
        return False

    def _check_classes(self, labels: np.ndarray, packed: tuple[str, ...] | None) -> None:
        """Refuse classes that do not fit; set ``metainfo['classes']`` where they are known."""
        given = self._metainfo.get('classes')
        classes = given or packed
        if given and packed and tuple(given) != packed:
            raise ValueError(
                f'ShardedImages: the classes given are not those that {self.img_prefix} was packed '
                f'with: {", ".join(packed[:5])}, ... Leave classes out to take these'
            )
        if classes and labels.max() >= len(classes):
            raise ValueError(
                f'ShardedImages: {self.img_prefix} has an image of class {labels.max()}, but '
                f'there are names for {len(classes)} classes from 0 on'
            )
        if classes:
            self._metainfo['classes'] = tuple(classes)

    def _take_split(self, samples: np.ndarray) -> np.ndarray:
        if self.split is None:
            return samples
        # As for a folder: the share of 2**64 that a name's hash is.
        is_held_out = samples['hash'] / 2.0**64 < self.holdout
        taken = samples[is_held_out == (self.split == 'val')]
        self._check_split(len(taken), len(samples))
        return taken
