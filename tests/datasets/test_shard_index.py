"""Shards: the index file, names, remote shards, and errors of damaged ones."""

import json
import os
import tarfile

import pytest
from mmengine.fileio import BaseStorageBackend, register_backend

from mmpatchmix.datasets import shard_index
from mmpatchmix.datasets.shard_index import list_shards
from mmpatchmix.datasets.skip_unreadable import UnreadableImagesError
from mmpatchmix.evaluation.feature_cache import _digest_images
from tests.datasets.shards import (
    encode_image,
    make_shards,
    open_shards,
    read_all,
    read_number,
    write_tar,
)

NUM = 20


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp('shards'), NUM, per_shard=3)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.delenv('PATCHMIX_CACHE', raising=False)


def test_shards_are_scanned_once_and_again_when_they_change(tmp_path, monkeypatch):
    make_shards(tmp_path, 9, per_shard=3)
    names, scan = [], shard_index.scan_shard
    monkeypatch.setattr(
        shard_index,
        'scan_shard',
        lambda path, endings: names.append(os.path.basename(path)) or scan(path, endings),
    )
    assert read_all(open_shards(tmp_path)) == list(range(9))
    assert sorted(names) == [f'train-00000{i}.tar' for i in range(3)]
    names.clear()
    assert read_all(open_shards(tmp_path)) == list(range(9))
    assert names == []
    os.remove(tmp_path / 'train-000001.tar')  # as pack-shards replaces it
    write_tar(tmp_path / 'train-000001.tar', {f'{i}.png': encode_image(i) for i in (50, 51)})
    assert read_all(open_shards(tmp_path, labels=False)) == [0, 1, 2, 50, 51, 6, 7, 8]
    assert names == ['train-000001.tar']
    os.remove(tmp_path / 'train-000000.tar')
    assert read_all(open_shards(tmp_path, labels=False)) == [50, 51, 6, 7, 8]


def test_a_change_that_keeps_the_size_is_detected(tmp_path):
    write_tar(tmp_path / 'a.tar', {'1.png': encode_image(1), '1.cls': b'4'})
    dataset = open_shards(tmp_path)
    assert dataset.get_data_info(0)['gt_label'] == 4
    before = _digest_images(dataset)  # of cached features
    write_tar(tmp_path / 'a.tar', {'1.png': encode_image(1), '1.cls': b'7'})
    os.utime(tmp_path / 'a.tar', ns=(0, 0))
    assert open_shards(tmp_path).get_data_info(0)['gt_label'] == 7
    assert _digest_images(dataset) != before


def test_a_shard_stays_open_until_it_is_read(shards, monkeypatch):
    read = os.pread

    def read_later(*args):
        shard_index._open.cache_clear()  # as another thread that opens many shards
        return read(*args)

    monkeypatch.setattr(os, 'pread', read_later)
    assert read_all(open_shards(shards)) == list(range(NUM))


def test_a_damaged_index_in_the_cache_is_replaced(tmp_path, monkeypatch):
    make_shards(tmp_path / 'shards', 4, per_shard=2)
    monkeypatch.setenv('PATCHMIX_CACHE', str(tmp_path / 'cache'))
    open_shards(tmp_path / 'shards')
    (file,) = tmp_path.rglob('*.npz')
    assert file.parent == tmp_path / 'cache'
    for content in (b'', b'no zip', file.read_bytes()[:-20]):
        file.write_bytes(content)
        assert read_all(open_shards(tmp_path / 'shards')) == list(range(4))


def test_folders_ranges_and_wildcards(shards, monkeypatch):
    names = [str(shards / f'train-{number:06d}.tar') for number in range(7)]
    for location in ('', '/train-{000000..000006}.tar', '/train-*.tar', '/train-00000[0-6].tar'):
        assert list_shards(f'{shards}{location}') == names
    monkeypatch.chdir(shards.parent)
    assert list_shards(f'{shards.name}/train-{{000002..000003}}.tar') == names[2:4]
    assert list_shards('http://h/{0..1}/{08..10}.tar') == [
        f'http://h/{folder}/{number}.tar' for folder in (0, 1) for number in ('08', '09', '10')
    ]


@pytest.mark.parametrize('name', ['val-000000', 'set-validation-01', 'test'])
def test_training_and_validation_shards_in_one_folder_are_told_apart(tmp_path, name):
    make_shards(tmp_path, 4, 2)
    write_tar(tmp_path / 'other.tar', {'9.png': encode_image(9)})
    assert len(open_shards(tmp_path)) == 5
    write_tar(tmp_path / f'{name}.tar', {'8.png': encode_image(8)})
    with pytest.raises(ValueError, match=r"--data-root '.*/train-\*\.tar' --val-root"):
        open_shards(tmp_path)
    assert len(open_shards(tmp_path / 'train-*.tar')) == 4


def test_missing_shards_are_named(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'train-000007.tar and 2 more'):
        open_shards(shards / 'train-{000005..000009}.tar')
    with pytest.raises(FileNotFoundError, match=r'\{000000\.\.000009\}'):
        open_shards(tmp_path)
    with pytest.raises(ValueError, match='cannot be listed'):
        open_shards('http://localhost/shards')


def test_remote_shards_are_copied_once(shards, tmp_path, monkeypatch):
    requested = []

    class Bucket(BaseStorageBackend):
        def __init__(self, token):
            assert token == 'mine'

        def get(self, filepath):
            requested.append(filepath.removeprefix('bucket://there/'))
            return (shards / requested[-1]).read_bytes()

        get_text = None

    register_backend('bucket', Bucket, prefixes='bucket', force=True)
    settings = dict(backend_args=dict(backend='bucket', token='mine'))
    location = dict(data_prefix='train-{000000..000006}.tar')
    with pytest.raises(ValueError, match='PATCHMIX_CACHE=FOLDER'):
        open_shards('bucket://there', **location, **settings)
    monkeypatch.setenv('PATCHMIX_CACHE', str(tmp_path))
    for _ in range(2):
        assert read_all(open_shards('bucket://there', **location, **settings)) == list(range(NUM))
        assert requested == [f'train-{number:06d}.tar' for number in range(7)]
    with pytest.raises(ConnectionError, match=r'train-000007\.tar cannot be read: .*No such file'):
        open_shards('bucket://there/train-{000000..000007}.tar', **settings)


def test_members_with_further_dots_are_read(tmp_path):
    members = {}
    for number, name in enumerate(('2021.01.a', '2021.02.b', 'n01.5_x')):
        members |= {f'{name}.png': encode_image(number), f'{name}.cls': str(number).encode()}
    # Of a sample with an image of the plain name, further members are masks and the like.
    members |= {'7.png': encode_image(7), '7.mask.png': encode_image(8), '7.cls': b'2'}
    members |= {'9.rgb.png': encode_image(9), '9.cls': b'1'}
    write_tar(tmp_path / 'a.tar', members)
    dataset = open_shards(tmp_path)
    labels = [dataset.get_data_info(n)['gt_label'] for n in range(len(dataset))]
    assert labels == [0, 1, 2, 2, 1]
    assert [int(dataset[n]['inputs']['view_1'].max()) for n in range(5)] == [0, 1, 2, 7, 9]


def test_invalid_samples_links_and_different_packings_are_refused(tmp_path):
    for message, members in {
        "a .cls file holds b'cat'": {'1.png': b'', '1.cls': b'cat'},
        '1.png and 1.jpg are one sample': {'1.png': b'', '1.jpg': b''},
        'out of bounds for int32': {'1.png': b'', '1.cls': b'99999999999'},
        r'1\.cls is not beside its image': {'1.cls': b'0', '2.png': b'', '1.png': b''},
        '1.PNG comes twice': {'1.png': b'', '1.PNG': b''},
        'no image in the 1 shards': {'1.txt': b''},
        'leads out of the archive': {'/etc/1.png': b''},
        'refused: .*leads out of the archive': {'a/../../1.png': b''},
        'pack-shards wrote 2 images, 1 members end in .*png.*: set extensions': {
            '__pack__': b'{"sources": ["a", "b"]}',
            '1.png': b'1',
        },
    }.items():
        write_tar(tmp_path / 'a.tar', members)
        with pytest.raises(ValueError, match=message):
            open_shards(tmp_path)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / 'a.tar', 'w') as shard:
            member = tarfile.TarInfo('1.png')
            member.type, member.linkname = kind, '/etc/passwd'
            shard.addfile(member)
        with pytest.raises(ValueError, match=r"a\.tar is refused: '1.png' is not a plain file"):
            open_shards(tmp_path)
    for name, classes in (('a', ['ant']), ('b', ['bee'])):
        meta = json.dumps({'classes': classes, 'sources': ['1.png']}).encode()
        members = {'1.png': encode_image(1), '1.cls': b'0', '__pack__': meta}
        write_tar(tmp_path / f'{name}.tar', members)
    with pytest.raises(ValueError, match=r'b\.tar was packed with other classes'):
        open_shards(tmp_path)


def test_cut_and_damaged_shards_are_named(tmp_path):
    make_shards(tmp_path, 6, per_shard=3)
    path = tmp_path / 'train-000001.tar'
    whole = path.read_bytes()
    end = whole.rindex(b'ustar') // 512 * 512 + 1024  # of the last member
    for size in (0, 511, 512, 700, 2048, end - 1, end):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r'shard .*train-000001\.tar is refused'):
            open_shards(tmp_path)
    for at in range(0, end, 512):
        if whole[at + 257 : at + 262] == b'ustar':  # a header
            path.write_bytes(whole[: at + 3] + b'?' + whole[at + 4 :])
            with pytest.raises(ValueError, match=r'train-000001\.tar is refused'):
                open_shards(tmp_path)
    path.write_bytes(whole[: end + 512])  # complete without padding
    assert read_all(open_shards(tmp_path)) == list(range(6))
    with tarfile.open(path, 'w:gz'), pytest.raises(ValueError, match='uncompressed tar files'):
        open_shards(tmp_path)


def test_images_that_cannot_be_read_are_named_by_shard_and_member(tmp_path):
    write_tar(tmp_path / 'a.tar', {f'{i}.png': b'no image' for i in range(9)})
    dataset = open_shards(tmp_path)
    with pytest.raises(UnreadableImagesError, match=r'a\.tar: 2\.png'):
        for index in range(2, 9):
            dataset.prepare_data(index)
    os.truncate(tmp_path / 'a.tar', 2048)  # while it is read
    with pytest.raises(OSError, match=r'a\.tar ends before byte'):
        read_number(dataset, 2)
