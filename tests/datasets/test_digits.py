import numpy as np
import pytest
from mmpretrain.registry import DATASETS
from sklearn.datasets import load_digits

from mmpatchmix.datasets import Digits


def contents(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


@pytest.fixture(scope='module')
def splits():
    return {split: Digits(split=split) for split in ('train', 'test')}


def test_splits_are_disjoint_and_complete():
    # At 8x8 nothing is interpolated, so every image can be traced to its original.
    originals = load_digits()
    keys = [np.rint(image * (255 / 16)).astype(np.uint8).tobytes() for image in originals.images]
    ours = []
    for split in ('train', 'test'):
        ours.append([i['img'][..., 0].tobytes() for i in contents(Digits(split, image_size=8))])
    assert len(set(keys)) == 1797  # no two digits are equal, so sets tell the whole truth
    assert set(ours[0]).isdisjoint(ours[1])
    assert set(ours[0]) | set(ours[1]) == set(keys)
    label_of = dict(zip(keys, originals.target, strict=True))
    for split in ('train', 'test'):
        for item in contents(Digits(split, image_size=8)):
            assert item['gt_label'] == label_of[item['img'][..., 0].tobytes()]


def test_split_is_stratified_and_the_same_every_time(splits):
    assert (len(splits['train']), len(splits['test'])) == (1437, 360)
    shares = np.bincount([item['gt_label'] for item in contents(splits['test'])]) / np.bincount(
        load_digits().target
    )
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    np.random.seed(5)
    again = Digits('test')
    for first, second in zip(contents(splits['test']), contents(again), strict=True):
        assert np.array_equal(first['img'], second['img'])


def test_samples_are_enlarged_grey_images(splits):
    item = splits['train'].get_data_info(0)
    assert item['img'].shape == (32, 32, 3)
    assert item['img'].dtype == np.uint8
    assert item['img_shape'] == item['ori_shape'] == (32, 32)
    assert isinstance(item['gt_label'], int)
    for item in contents(splits['test'])[:50]:
        channels = item['img'].transpose(2, 0, 1)
        assert np.array_equal(channels[0], channels[1])
        assert np.array_equal(channels[0], channels[2])
    # Averaging 4x4 blocks must give the original back, but for bicubic's sharpening.
    original = load_digits().images * (255 / 16)
    means = splits['train'].get_data_info(3)['img'][..., 0].reshape(8, 4, 8, 4).mean((1, 3))
    nearest = np.abs(original - means).mean((1, 2))
    assert nearest.min() < 12


def test_range_is_kept_without_wrapping_around():
    # Bicubic overshoots beyond 0 and 255; a cast without a clip would turn black into white.
    for item in contents(Digits('test', image_size=32))[:100]:
        grey = item['img'][..., 0].astype(int)
        assert grey.max() > 200
        border = np.abs(np.diff(grey, axis=1)).max()
        assert border < 160, 'neighbours of an enlarged image differ little'


def test_built_by_name_with_a_pipeline():
    pipeline = [
        dict(type='mmpatchmix.MultiCrop', global_size=32),
        dict(type='mmpatchmix.PackViews'),
    ]
    dataset = DATASETS.build(dict(type='mmpatchmix.Digits', split='test', pipeline=pipeline))
    sample = dataset[0]
    assert sample['inputs']['view_1'].shape == (32, 32, 3)
    assert sample['data_samples'].gt_label.item() in range(10)
    assert dataset.metainfo['classes'] == tuple('0123456789')
    plain = Digits('test', pipeline=[dict(type='mmpretrain.PackInputs')])[0]
    assert plain['inputs'].shape == (3, 32, 32)


@pytest.mark.parametrize(
    'settings', [dict(split='val'), dict(image_size=4), dict(test_share=1.0)], ids=repr
)
def test_wrong_arguments_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Digits(**settings)


def test_changed_digits_are_moved_resized_and_turned_the_same_every_time(splits):
    changed = contents(Digits(split='test', changed=True))
    again = contents(Digits(split='test', changed=True))
    plain = contents(splits['test'])
    assert len(changed) == len(plain)
    areas, shifts = [], []
    for one, two, before in zip(changed, again, plain, strict=True):
        assert np.array_equal(one['img'], two['img'])
        assert one['gt_label'] == before['gt_label']
        assert not np.array_equal(one['img'], before['img'])
        areas.append(one['img'].sum() / before['img'].sum())  # of ink, the squared factor
        centres = [
            np.array(np.nonzero(item['img'][..., 0] > 100)).mean(axis=1) for item in (one, before)
        ]
        shifts.append(centres[0] - centres[1])
    assert 0.5 < np.quantile(areas, 0.05) < 0.7 and 1.0 < np.quantile(areas, 0.95) < 1.25
    shifts = np.array(shifts)
    assert (np.abs(shifts) < 7).all() and (shifts.std(axis=0) > 1.5).all()  # up to 4 pixels
