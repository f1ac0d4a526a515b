"""CustomDataset: lists of images in LMDB and remote ones, with missing ones skipped."""

import lmdb
import pytest
from mmengine.dataset import default_collate
from mmengine.fileio import LocalBackend, register_backend
from torch.utils.data import DataLoader

from mmpatchmix.datasets import CustomDataset, LoadMultiCrop
from tests.datasets.shards import encode_image


class Library(LocalBackend):
    """A stand-in for a remote backend."""

    def get(self, filepath):
        return encode_image(int(filepath.removeprefix('library://')))


register_backend('library', Library, prefixes='library', force=True)


def make_database(path, num_images: int) -> dict:
    with lmdb.open(str(path)) as database, database.begin(write=True) as writes:
        for number in range(num_images):
            writes.put(f'a/{number}.png'.encode(), encode_image(number))
    return dict(backend='lmdb', db_path=str(path))


def open_list(tmp_path, lines: list[str], **settings) -> CustomDataset:
    """A list of images, through the transform of the recipes."""
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    crops = dict(type='mmpatchmix.LoadMultiCrop', global_size=16, **settings)
    pipeline = [crops, dict(type='mmpatchmix.PackViews')]
    return CustomDataset(ann_file=str(tmp_path / 'list.txt'), with_label=False, pipeline=pipeline)


def read(dataset, num_workers: int) -> list[int]:
    """Numbers of the images."""
    _ = dataset[0]  # opens the backend in the main process, as the checks before training do
    loader = DataLoader(dataset, 4, num_workers=num_workers, collate_fn=default_collate)
    return [int(view[0, 0, 0]) for batch in loader for view in batch['inputs']['view_1']]


def test_images_of_an_lmdb_and_a_remote_backend_and_missing_keys(tmp_path):
    backend_args = make_database(tmp_path / 'images.lmdb', 6)
    lines = [f'a/{number}.png' for number in range(6)]
    dataset = open_list(tmp_path, lines, backend_args=backend_args)
    assert read(dataset, 0) == read(dataset, 2) == list(range(6))
    remote = open_list(tmp_path, [f'library://{number}' for number in range(6)])
    assert read(remote, 2) == list(range(6))
    dataset = open_list(tmp_path, ['a/0.png', 'a/none.png', 'a/2.png'], backend_args=backend_args)
    assert [dataset.prepare_data(number) is None for number in range(3)] == [False, True, False]
    assert dataset.num_unreadable == 1
    with pytest.raises(OSError, match=r'there is no b\.png in .*images\.lmdb'):
        LoadMultiCrop(backend_args=backend_args)({'img_path': 'b.png'})
