"""Tar shards: every image once, in any order, from the disk and from servers."""

import os
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, product

import pytest
import torch
import webdataset
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import default_collate
from mmengine.fileio import BaseStorageBackend, get, register_backend
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader

from mmpatchmix.datasets import ShardedImages, shard_index
from mmpatchmix.datasets.shard_index import list_shards
from mmpatchmix.engine.exact_order import ExactSampler, make_exact, skip_batches
from mmpatchmix.evaluation.feature_cache import _digest_images
from tests.datasets.folders import PIPELINE
from tests.datasets.shards import (
    encode_image,
    make_shards,
    open_shards,
    read_all,
    read_number,
    write_tar,
)

NUM = 64


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp('shards'), NUM, per_shard=10)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.delenv('PATCHMIX_CACHE', raising=False)
    monkeypatch.setenv('no_proxy', '*')


# What is read


def test_images_and_labels_are_those_that_the_webdataset_library_reads(shards):
    dataset = open_shards(shards)
    pattern = str(shards / 'train-{000000..000006}.tar')
    expected = list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False))
    assert len(dataset) == len(expected) == NUM
    for index, sample in enumerate(expected):
        info = dataset.get_data_info(index)
        assert get(info['img_path']) == sample['png']
        assert info['gt_label'] == int(sample['cls'])
        assert info['sample_idx'] == index


def test_shards_that_the_webdataset_library_wrote(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / 'a-%06d.tar'), maxcount=4, verbose=0) as writer:
        for number in range(10):
            sample = {'__key__': f'{"long/" * 40}{number}', 'png': encode_image(number)}
            writer.write(sample | {'cls': number % 2, 'json': {'number': number}})
    dataset = open_shards(tmp_path)
    assert read_all(dataset) == list(range(10))
    assert [dataset.get_data_info(i)['gt_label'] for i in range(10)] == [0, 1] * 5


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_of_tar(tmp_path, format):
    names = ['a/1.PNG', 'a/2.seg.png', 'a/2.png', './3.png', '._4.png', 'größe.png', 'notes.txt']
    if format != tarfile.USTAR_FORMAT:
        names.append('x' * 200 + '.png')
    members = {name: encode_image(number) for number, name in enumerate(names)}
    write_tar(tmp_path / 'a.tar', members, format=format)
    assert read_all(open_shards(tmp_path)) == [0, 2, 3, 5, 7][: 4 + (len(names) == 8)]


def test_through_the_pipeline_and_real_workers(shards):
    dataset = open_shards(shards)
    loader = DataLoader(dataset, batch_size=8, num_workers=2, collate_fn=default_collate)
    seen = [int(view[0, 0, 0]) for batch in loader for view in batch['inputs']['view_1']]
    assert seen == list(range(NUM))


def test_transforms_need_no_setting_of_their_own(shards):
    info = open_shards(shards).get_data_info(33)
    assert (LoadImageFromFile().transform(info)['img'] == 33).all()


# Epochs


def read_epoch(dataset, ranks, workers, skipped=0) -> list[list[int]]:
    """Read an epoch as ranks and workers would, or what is left of it; numbers by rank."""
    rows = []
    for rank in range(ranks):
        sampler = ExactSampler(dataset, seed=5)
        sampler.rank, sampler.world_size = rank, ranks
        sampler.num_samples, sampler.total_size = NUM // ranks, NUM
        sampler.set_epoch(3)
        sampler.num_skipped = skipped // ranks
        batches = list(BatchSampler(sampler, 2, drop_last=False))
        numbers = [[] for _ in batches]
        for worker in range(workers):
            copy = pickle.loads(pickle.dumps(dataset))  # as in a process of its own
            for batch in range(worker, len(batches), workers):  # as torch deals them out
                numbers[batch] = [read_number(copy, index) for index in batches[batch]]
        rows.append([*chain(*numbers)])
    return rows


@pytest.mark.parametrize(('ranks', 'workers'), [*product((1, 2, 4), repeat=2)])
def test_every_image_comes_once_per_epoch_also_when_it_is_cut_and_resumed(shards, ranks, workers):
    dataset = open_shards(shards)
    rows = read_epoch(dataset, ranks, workers)
    assert sorted(chain(*rows)) == list(range(NUM))
    assert rows != [sorted(row) for row in rows]  # shuffled
    for consumed, ranks_after in product((8, 40), (1, 2, 4)):
        before = chain(*(row[: consumed // ranks] for row in rows))
        after = read_epoch(dataset, ranks_after, workers, skipped=consumed)
        assert sorted(chain(before, *after)) == list(range(NUM))


def test_a_loader_with_workers_goes_on_in_the_middle(shards):
    cfg = dict(
        batch_size=8,
        num_workers=2,
        dataset=dict(type=ShardedImages, data_root=str(shards), pipeline=PIPELINE),
        sampler=dict(type='DefaultSampler', shuffle=True, seed=1),
        collate_fn=dict(type='default_collate'),
    )

    def read(skipped):
        loader = Runner.build_dataloader(make_exact(cfg))
        assert skip_batches(loader, skipped)
        batches = [batch['inputs']['view_1'] for batch in loader]
        return torch.cat(batches)[:, 0, 0, 0].tolist()

    whole = read(0)
    assert sorted(whole) == list(range(NUM))
    assert read(3) == whole[24:]


# The index file


def scans(monkeypatch) -> list[str]:
    """Collect the names of the shards that are looked through from now on."""
    names, scan = [], shard_index.scan_shard

    def note(path, endings):
        names.append(os.path.basename(path))
        return scan(path, endings)

    monkeypatch.setattr(shard_index, 'scan_shard', note)
    return names


def test_shards_are_looked_through_once_and_again_when_they_change(tmp_path, monkeypatch):
    make_shards(tmp_path, 9, per_shard=3)
    names = scans(monkeypatch)
    assert read_all(open_shards(tmp_path)) == list(range(9))
    assert sorted(names) == [f'train-00000{i}.tar' for i in range(3)]
    names.clear()
    assert read_all(open_shards(tmp_path)) == list(range(9))
    assert names == []
    write_tar(tmp_path / 'train-000001.tar', {f'{i}.png': encode_image(i) for i in (50, 51)})
    assert read_all(open_shards(tmp_path, labels=False)) == [0, 1, 2, 50, 51, 6, 7, 8]
    assert names == ['train-000001.tar']
    os.remove(tmp_path / 'train-000000.tar')
    assert read_all(open_shards(tmp_path, labels=False)) == [50, 51, 6, 7, 8]


def test_a_change_that_keeps_the_size_is_noticed(tmp_path, monkeypatch):
    write_tar(tmp_path / 'a.tar', {'1.png': encode_image(1), '1.cls': b'4'})
    assert open_shards(tmp_path).get_data_info(0)['gt_label'] == 4
    write_tar(tmp_path / 'a.tar', {'1.png': encode_image(1), '1.cls': b'7'})
    os.utime(tmp_path / 'a.tar', ns=(0, 0))
    assert open_shards(tmp_path).get_data_info(0)['gt_label'] == 7


def test_cached_features_are_of_the_shard_as_it_is(tmp_path):
    dataset = open_shards(make_shards(tmp_path, 3, per_shard=3))
    before = _digest_images(dataset)
    assert _digest_images(dataset) == before
    os.utime(tmp_path / 'train-000000.tar', ns=(0, 0))
    assert _digest_images(dataset) != before


@pytest.mark.parametrize('content', [b'', b'no zip', None])
def test_a_damaged_index_is_made_again(tmp_path, content):
    make_shards(tmp_path, 4, per_shard=2)
    open_shards(tmp_path)
    (file,) = tmp_path.glob('*.npz')
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    assert read_all(open_shards(tmp_path)) == list(range(4))


def test_the_index_goes_where_the_cache_is(tmp_path, monkeypatch):
    make_shards(tmp_path / 'shards', 4, per_shard=2)
    monkeypatch.setenv('PATCHMIX_CACHE', str(tmp_path / 'cache'))
    assert len(open_shards(tmp_path / 'shards')) == 4
    assert len(list((tmp_path / 'cache').glob('*.npz'))) == 1
    assert not list((tmp_path / 'shards').glob('*.npz'))


def test_memory_is_twenty_bytes_per_image(shards):
    assert open_shards(shards).data_list.nbytes == 20 * NUM


# Names of shards


def test_folders_ranges_and_wildcards(shards, monkeypatch):
    names = [str(shards / f'train-{number:06d}.tar') for number in range(7)]
    for location in ('', '/train-{000000..000006}.tar', '/train-*.tar', '/train-00000[0-6].tar'):
        assert list_shards(f'{shards}{location}') == names
    monkeypatch.chdir(shards.parent)
    assert list_shards(f'{shards.name}/train-{{000002..000003}}.tar') == names[2:4]
    assert list_shards('http://h/{0..1}/{08..10}.tar') == [
        f'http://h/{folder}/{number}.tar' for folder in (0, 1) for number in ('08', '09', '10')
    ]


def test_missing_shards_are_named(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'train-000007.tar and 2 more'):
        open_shards(shards / 'train-{000005..000009}.tar')
    with pytest.raises(FileNotFoundError, match=r'\{000000\.\.000009\}'):
        open_shards(tmp_path)
    with pytest.raises(ValueError, match='cannot be listed from here'):
        open_shards('http://localhost/shards')


# Labels and splits


def test_labels(tmp_path, shards):
    make_shards(tmp_path, 6, per_shard=3, labelled=False)
    assert open_shards(shards).metainfo['labelled'] is True
    unlabelled = open_shards(shards, labels=False)
    assert unlabelled.metainfo['labelled'] is False and 'gt_label' not in unlabelled.get_data_info(
        0
    )
    assert open_shards(tmp_path).metainfo['labelled'] is False
    with pytest.raises(ValueError, match=r'labels=True, but 6 of the 6 images .* have no \.cls'):
        open_shards(tmp_path, labels=True)


def test_classes_must_fit(shards):
    assert open_shards(shards, classes=['a', 'b', 'c']).metainfo['classes'] == ('a', 'b', 'c')
    with pytest.raises(ValueError, match='an image of class 2, but there are names for 2 classes'):
        open_shards(shards, classes=['a', 'b'])


def test_splits_share_nothing_and_leave_nothing_out(shards):
    train = read_all(open_shards(shards, split='train', holdout=0.3))
    val = read_all(open_shards(shards, split='val', holdout=0.3))
    assert sorted(train + val) == list(range(NUM))
    assert 8 < len(val) < 32
    with pytest.raises(ValueError, match="leaves none for split='val'"):
        open_shards(shards, split='val', holdout=1e-9)


# Remote shards


@pytest.fixture
def server(shards):
    """A web server of the shards' folder; yields its address and the paths it was asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *args):
            asked.append(self.path)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', asked
    server.shutdown()
    server.server_close()


def test_remote_shards_are_copied_once(server, tmp_path, monkeypatch):
    address, asked = server
    location = f'{address}/train-{{000000..000006}}.tar'
    with pytest.raises(ValueError, match='PATCHMIX_CACHE=FOLDER'):
        open_shards(location)
    monkeypatch.setenv('PATCHMIX_CACHE', str(tmp_path))
    assert read_all(open_shards(location)) == list(range(NUM))
    assert asked == [f'/train-{number:06d}.tar' for number in range(7)]
    assert read_all(open_shards(location)) == list(range(NUM))
    assert len(asked) == 7
    with pytest.raises(ConnectionError, match=r'train-000007\.tar cannot be read: .*404'):
        open_shards(f'{address}/train-{{000000..000007}}.tar')


def test_any_backend_of_mmengine_copies(shards, tmp_path):
    class Bucket(BaseStorageBackend):
        def __init__(self, token):
            assert token == 'mine'

        def get(self, filepath):
            return (shards / filepath.removeprefix('bucket://there/')).read_bytes()

        get_text = None

    register_backend('bucket', Bucket, prefixes='bucket', force=True)
    dataset = open_shards(
        'bucket://there',
        data_prefix='train-{000001..000002}.tar',
        cache_dir=str(tmp_path),
        backend_args=dict(backend='bucket', token='mine'),
    )
    assert read_all(dataset) == list(range(10, 30))
