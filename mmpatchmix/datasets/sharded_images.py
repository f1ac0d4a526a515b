"""``ShardedImages``: images in tar shards of the webdataset library's format."""

import os
import os.path as osp
import tarfile

import numpy as np
from mmengine.logging import MMLogger

from mmpatchmix.datasets.image_folder import ImageFolder
from mmpatchmix.datasets.shard_index import PREFIX, fetch_shards, list_shards, read_index
from mmpatchmix.files import locked
from mmpatchmix.registry import DATASETS

HELD = ['offset', 'size', 'shard', 'label']  # in memory: 20 bytes per image


@DATASETS.register_module()
class ShardedImages(ImageFolder):
    """Images in tar shards, in place of :class:`ImageFolder`.

    A sample is an image and, with labels, its class number: ``KEY.jpg`` and ``KEY.cls``, as written
    by ``mmpatchmix pack-shards`` and the webdataset library. Other members are ignored. The first
    start scans the shards and saves an index file, so that images are read in any order, and
    epochs, ranks, workers and resuming work as for files. ``metainfo`` has ``classes`` only if
    ``pack-shards`` stored them or the argument is given.

    Args:
        data_root: The folder of the tar files, or their path or URL with ranges or wildcards
            (:func:`list_shards`).
        data_prefix: Joined to ``data_root``: the folder or pattern below it.
        cache_dir: Folder for copies of remote shards, made at the first start and not checked
            later, and for the index file. By default ``$PATCHMIX_CACHE``; without both, the index
            file lies beside the shards.
        backend_args: Arguments of mmengine's file backend for remote shards.
        **kwargs: As in :class:`ImageFolder`. ``labels='auto'``: labelled when every image has a
            class. ``split``: by the key, or by the source for shards of ``pack-shards``, which
            hold out the same images as their folder.

    Raises:
        FileNotFoundError: If there are no shards, or one of a range is missing.
        ConnectionError: If a remote shard cannot be copied.
        ValueError: If a shard is damaged or refused, an argument is out of range, there is no
            image, or labels or classes do not fit the arguments.
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
        """Return offset, size, shard and label (-1: none) of each image: ``HELD``."""
        samples, classes = self._read_index()
        labelled = self.labels is not False and self._has_labels(samples['label'])
        self._metainfo.update(labelled=labelled, split=self.split)
        if labelled:
            names = classes or self.CLASSES or ()
            if names and (largest := samples['label'].max()) >= len(names):
                raise ValueError(
                    f'ShardedImages: {self.img_prefix} has an image of class {largest}, but there '
                    f'are names for {len(names)} classes only'
                )
            if classes:
                labels = [classes[number] for number in samples['label']]
                samples['label'] = self._number_labels(labels, classes)
            if self.split:
                samples = samples[self._choose_split(samples['hash'])]
        data_list = np.empty(len(samples), [(name, samples.dtype[name]) for name in HELD])
        for name in HELD:
            data_list[name] = samples[name] if labelled or name != 'label' else -1
        return data_list

    def _locate(self, row: np.void) -> tuple[str, int]:
        offset, size, shard, label = row.item()
        return f'{PREFIX}{self.shards[shard]}/{offset}+{size}', label

    def name_sample(self, idx: int) -> str:
        """Return shard and member of a sample, read from the member's header."""
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
        """Join root and prefix, also of URLs, for which mmengine would need the backend."""
        path = osp.join(self.data_root, self.data_prefix['img_path'])
        self.data_prefix['img_path'] = path.rstrip('/')

    def _read_index(self) -> tuple[np.ndarray, list[str] | None]:
        """Find the shards, copy remote ones, and return their index."""
        self.shards = list_shards(self.img_prefix)
        is_remote = '://' in self.img_prefix
        if is_remote and not self.cache_dir:
            raise ValueError(
                f'{self.img_prefix} is remote: set PATCHMIX_CACHE=FOLDER before the command, or '
                'cache_dir of the data set, to a folder with room for all shards'
            )
        # One rank of a machine copies and scans; the others wait and use its files.
        with locked(self.cache_dir or osp.dirname(self.shards[0]), wait=True):
            if is_remote:
                self.shards = fetch_shards(self.shards, self.cache_dir, self.backend_args)
            samples, classes = read_index(self.shards, self.extensions, self.cache_dir)
        if len(samples) == 0:
            raise ValueError(
                f'ShardedImages: no image in the {len(self.shards)} shards of {self.img_prefix}. '
                f'Searched for members ending in {", ".join(sorted(self.extensions))}'
            )
        return samples, classes

    def _has_labels(self, labels: np.ndarray) -> bool:
        """Return whether all images have a class; ValueError if labels=True and some have none."""
        num_without = int((labels < 0).sum())
        message = f'{num_without} of the {len(labels)} images in {self.img_prefix} have no .cls'
        if num_without and self.labels is True:
            advice = 'Use labels=False, or pack classes'
            raise ValueError(f'ShardedImages: labels=True, but {message}. {advice}')
        if 0 < num_without < len(labels):
            MMLogger.get_current_instance().warning(f'{message}: all are read without labels')
        return num_without == 0
