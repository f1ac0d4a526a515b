"""Lists of images in an LMDB or on a web server, by mmengine's file backends."""

import lmdb
import pytest
from mmengine.dataset import default_collate
from mmengine.fileio import LocalBackend, register_backend
from torch.utils.data import DataLoader

from mmpatchmix.datasets import CustomDataset, LoadMultiCrop
from tests.datasets.shards import encode_image


class Library(LocalBackend):
    """Stands in for a remote one."""

    def get(self, filepath):
        return encode_image(int(filepath.removeprefix('library://')))


register_backend('library', Library, prefixes='library', force=True)


def make_database(path, num_images: int) -> dict:
    with lmdb.open(str(path)) as database, database.begin(write=True) as writes:
        for number in range(num_images):
            writes.put(f'a/{number}.png'.encode(), encode_image(number))
    return dict(backend='lmdb', db_path=str(path))


def read_list(tmp_path, lines: list[str], num_workers: int, **settings) -> list[int]:
    """Numbers of the images of a list, through the transform of the recipes."""
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    crops = dict(type='mmpatchmix.LoadMultiCrop', global_size=16, **settings)
    dataset = CustomDataset(
        ann_file=str(tmp_path / 'list.txt'),
        with_label=False,
        pipeline=[crops, dict(type='mmpatchmix.PackViews')],
    )
    _ = dataset[0]  # as the checks before training do, in the process that workers come from
    loader = DataLoader(dataset, 4, num_workers=num_workers, collate_fn=default_collate)
    return [int(view[0, 0, 0]) for batch in loader for view in batch['inputs']['view_1']]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_images_of_an_lmdb(tmp_path, num_workers):
    backend_args = make_database(tmp_path / 'images.lmdb', 12)
    lines = [f'a/{number}.png' for number in range(12)]
    numbers = read_list(tmp_path, lines, num_workers, backend_args=backend_args)
    assert numbers == list(range(12))


def test_keys_that_an_lmdb_lacks_are_skipped_and_counted(tmp_path):
    crops = dict(
        type='mmpatchmix.LoadMultiCrop',
        global_size=16,
        backend_args=make_database(tmp_path / 'images.lmdb', 3),
    )
    (tmp_path / 'list.txt').write_text('a/0.png\na/none.png\na/2.png')
    dataset = CustomDataset(ann_file=str(tmp_path / 'list.txt'), with_label=False, pipeline=[crops])
    assert [dataset.prepare_data(number) is None for number in range(3)] == [False, True, False]
    assert dataset.num_unreadable == 1


def test_a_key_that_an_lmdb_lacks_is_named(tmp_path):
    load = LoadMultiCrop(backend_args=make_database(tmp_path / 'images.lmdb', 1))
    with pytest.raises(OSError, match=r'there is no b\.png in .*images\.lmdb'):
        load({'img_path': 'b.png'})


@pytest.mark.parametrize('num_workers', [0, 2])
def test_single_remote_images_are_read_from_a_list(tmp_path, num_workers):
    lines = [f'library://{number}' for number in range(12)]
    assert read_list(tmp_path, lines, num_workers) == list(range(12))
