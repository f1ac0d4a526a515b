"""ShardedImages: images, labels and splits; every image once per epoch."""

import pickle
import tarfile
from itertools import chain, product

import pytest
import torch
import webdataset
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import get
from mmengine.runner import Runner
from torch.utils.data import BatchSampler

from mmpatchmix.datasets import ShardedImages
from mmpatchmix.engine.exact_order import ExactSampler, make_exact, skip_batches
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


def test_images_and_labels_are_those_that_the_webdataset_library_reads(shards):
    dataset = pickle.loads(pickle.dumps(open_shards(shards)))
    pattern = str(shards / 'train-{000000..000006}.tar')
    expected = list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False))
    assert len(dataset) == len(expected) == NUM and dataset.data_list.nbytes == 20 * NUM
    for index, sample in enumerate(expected):
        info = dataset.get_data_info(index)
        assert get(info['img_path']) == sample['png']
        assert info['gt_label'] == int(sample['cls'])
        assert info['sample_idx'] == index
    assert (LoadImageFromFile().transform(dataset.get_data_info(33))['img'] == 33).all()


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
    names += ['x' * 200 + '.png'] if format != tarfile.USTAR_FORMAT else []
    members = {name: encode_image(number) for number, name in enumerate(names)}
    write_tar(tmp_path / 'a.tar', members, format=format)
    assert read_all(open_shards(tmp_path)) == [0, 2, 3, 5, 7][: 4 + (len(names) == 8)]


def read_epoch(dataset, num_ranks, num_workers, skipped=0):
    """Read the images of each rank, in batches of 2, with an emulated sampler and workers."""
    rows = []
    for rank in range(num_ranks):
        sampler = ExactSampler(dataset, seed=5)
        sampler.rank, sampler.world_size = rank, num_ranks
        sampler.num_samples, sampler.total_size = NUM // num_ranks, NUM
        sampler.set_epoch(3)
        sampler.num_skipped = skipped // num_ranks
        batches = list(BatchSampler(sampler, 2, drop_last=False))
        copies = [pickle.loads(pickle.dumps(dataset)) for _ in range(num_workers)]
        rows.append([])
        for number, batch in enumerate(batches):
            rows[-1] += [read_number(copies[number % num_workers], index) for index in batch]
    return rows


@pytest.mark.parametrize(('ranks', 'workers'), product((1, 2, 4), repeat=2))
def test_every_image_comes_once_per_epoch_also_when_it_is_cut_and_resumed(shards, ranks, workers):
    dataset = open_shards(shards)
    rows = read_epoch(dataset, ranks, workers)
    assert sorted(chain(*rows)) == list(range(NUM))
    assert rows != [sorted(row) for row in rows]  # shuffled
    for consumed, ranks_after in product((8, 40), (1, 2, 4)):
        before = chain(*(row[: consumed // ranks] for row in rows))
        after = read_epoch(dataset, ranks_after, workers, skipped=consumed)
        assert sorted(chain(before, *after)) == list(range(NUM))


def test_a_loader_with_workers_reads_every_image_once_and_resumes(shards):
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


def test_labels_and_classes(tmp_path, shards):
    make_shards(tmp_path, 6, per_shard=3, labelled=False)
    assert open_shards(shards).metainfo['labelled'] is True
    unlabelled = open_shards(shards, labels=False)
    assert unlabelled.metainfo['labelled'] is False
    assert 'gt_label' not in unlabelled.get_data_info(0)
    assert open_shards(tmp_path).metainfo['labelled'] is False
    with pytest.raises(ValueError, match=r'labels=True, but 6 of the 6 images .* have no \.cls'):
        open_shards(tmp_path, labels=True)
    assert open_shards(shards, classes=['a', 'b', 'c']).metainfo['classes'] == ('a', 'b', 'c')
    with pytest.raises(ValueError, match=r'of class 2, but .* for 2 classes only'):
        open_shards(shards, classes=['a', 'b'])
    with pytest.raises(ValueError, match="leaves none for split='val'"):
        open_shards(shards, split='val', holdout=1e-9)
