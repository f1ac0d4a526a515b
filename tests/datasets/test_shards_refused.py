"""Shards that are damaged, lead elsewhere or mean nothing are refused by name."""

import json
import os
import tarfile

import pytest

from mmpatchmix.datasets.skip_unreadable import UnreadableImagesError
from tests.datasets.shards import (
    encode_image,
    make_shards,
    open_shards,
    read_all,
    read_number,
    write_tar,
)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.delenv('PATCHMIX_CACHE', raising=False)


@pytest.mark.parametrize('name', ['/etc/1.png', '../1.png', 'a/../../1.png'])
def test_names_that_lead_out_are_refused(tmp_path, name):
    write_tar(tmp_path / 'a.tar', {'0.png': encode_image(0), name: encode_image(1)})
    with pytest.raises(ValueError, match=r'shard .*a\.tar is refused.*leads out of the archive'):
        open_shards(tmp_path)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / 'a.tar', 'w') as shard:
        member = tarfile.TarInfo('1.png')
        member.type, member.linkname = kind, '/etc/passwd'
        shard.addfile(member)
    with pytest.raises(ValueError, match=r"a\.tar is refused: '1.png' is no plain file"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        ({'1.png': b'', '1.cls': b'cat'}, "a .cls file holds b'cat'"),
        ({'1.png': b'', '1.jpg': b''}, '1.png and 1.jpg are one sample: name one ending'),
        ({'1.png': b'', '1.PNG': b''}, '1.PNG comes twice'),
        ({'1.txt': b''}, 'no image in the 1 shards'),
        ({'__pack__': b'no json'}, 'is refused'),
        ({'__pack__': b'{"sources": ["a", "b"]}', '1.png': b'1'}, 'is refused'),
    ],
)
def test_shards_that_mean_nothing_are_refused(tmp_path, members, message):
    write_tar(tmp_path / 'a.tar', members)
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path)


def test_shards_of_different_packings_are_refused(tmp_path):
    for name, classes in (('a', ['ant']), ('b', ['bee'])):
        meta = json.dumps({'classes': classes, 'sources': ['1.png']}).encode()
        members = {'1.png': encode_image(1), '1.cls': b'0', '__pack__': meta}
        write_tar(tmp_path / f'{name}.tar', members)
    with pytest.raises(ValueError, match=r'b\.tar was packed with other classes'):
        open_shards(tmp_path)


def test_damaged_shards_are_named_wherever_they_are_cut(tmp_path):
    make_shards(tmp_path, 6, per_shard=3)
    path = tmp_path / 'train-000001.tar'
    whole = path.read_bytes()
    end = whole.rindex(b'ustar') // 512 * 512 + 1024  # of the last member
    for size in (0, 1, 511, 512, 700, 1024, 1500, 2048, end - 512, end - 1, end):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r'shard .*train-000001\.tar is refused'):
            open_shards(tmp_path)
    path.write_bytes(whole[: end + 512])  # without padding: whole
    assert read_all(open_shards(tmp_path)) == list(range(6))


def test_damaged_headers_are_named(tmp_path):
    make_shards(tmp_path, 3, per_shard=3)
    path = tmp_path / 'train-000000.tar'
    whole = path.read_bytes()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b'ustar']
    assert len(headers) == 6
    for at in headers:
        path.write_bytes(whole[: at + 3] + b'?' + whole[at + 4 :])
        with pytest.raises(ValueError, match=r'train-000000\.tar is refused'):
            open_shards(tmp_path)


def test_compressed_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w:gz'):
        pass
    with pytest.raises(ValueError, match='uncompressed tar files'):
        open_shards(tmp_path)


def test_images_that_cannot_be_read_are_named_by_shard_and_member(tmp_path):
    write_tar(tmp_path / 'a.tar', {f'{i}.png': b'no image' for i in range(9)})
    dataset = open_shards(tmp_path)
    with pytest.raises(UnreadableImagesError, match=r'a\.tar: 2\.png'):
        for index in range(2, 9):
            dataset.prepare_data(index)


def test_a_shard_that_is_cut_while_it_is_read(tmp_path):
    make_shards(tmp_path, 3, per_shard=3)
    dataset = open_shards(tmp_path)
    os.truncate(tmp_path / 'train-000000.tar', 2048)
    with pytest.raises(OSError, match=r'train-000000\.tar ends before byte'):
        read_number(dataset, 2)
