"""Batches after the data preprocessor."""

from functools import partial

import pytest
import torch

from mmpatchmix.models import PatchMixDataPreprocessor, mix_patches, mix_to_mix, mix_to_source
from tests.models.augment.test_augment import OFF
from tests.models.tiny import uint8_batch

assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-5)
MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]


def prepare(batch=None, seed=0, **kwargs):
    preprocessor = PatchMixDataPreprocessor(mean=MEAN, std=STD, **{'patch_size': 4, **kwargs})
    torch.manual_seed(seed)
    return preprocessor(batch or uint8_batch(num_local=2), training=True)['inputs']


def normalised(view, flip=True):
    """uint8 BGR (..., 3, H, W) -> normalised RGB, by hand."""
    rgb = (view.flip(-3) if flip else view).float()
    shape = (3, 1, 1)
    return (rgb - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


def test_views_are_normalised_rgb():
    batch = uint8_batch(num_local=2)
    raw = {name: view.clone() for name, view in batch['inputs'].items()}
    inputs = prepare(batch)
    for name in ('view_1', 'view_2'):
        assert_close(inputs[name], normalised(raw[name]))
    assert_close(inputs['local_views'].transpose(0, 1), normalised(raw['local_views']))
    inputs = prepare(uint8_batch(), to_rgb=False)
    assert_close(inputs['view_1'], normalised(raw['view_1'], flip=False))


def test_mixtures_and_targets_follow_the_groups():
    inputs = prepare(num_mix=3)
    groups = inputs['groups']
    for view in ('view_1', 'view_2'):
        expected = mix_patches(inputs[view], groups[view], 4)
        assert torch.equal(inputs[f'mixed_{view}'], expected)
    for crop, mixed, crop_groups in zip(
        inputs['local_views'], inputs['mixed_local_views'], groups['local_views'], strict=True
    ):
        assert torch.equal(mixed, mix_patches(crop, crop_groups, 4))
        for part, expected in zip(
            inputs['local_mix_to_source'], mix_to_source(crop_groups, 3), strict=True
        ):
            assert torch.equal(part, expected)
    for name, expected in {
        'mix_to_source': mix_to_source(groups['view_2'], 3),
        'mix_to_mix': mix_to_mix(groups['view_2'], groups['view_1'], 3),
    }.items():
        for part, other in zip(inputs[name], expected, strict=True):
            assert torch.equal(part, other)


def test_every_mix_draws_its_own_permutation():
    batch = uint8_batch(size=32, num_local=3, local_size=32)
    groups = prepare(batch)['groups']
    draws = [groups['view_1'], groups['view_2'], *groups['local_views']]
    assert len({tuple(draw.tolist()) for draw in draws}) == 5
    again = prepare(uint8_batch(size=32, num_local=3, local_size=32), seed=1)['groups']
    assert not torch.equal(again['view_1'], groups['view_1'])


def test_unequal_shares_are_drawn_for_every_mix():
    batch = uint8_batch(size=32, num_local=3, local_size=32)
    inputs = prepare(batch, num_mix=3, shares=dict(alpha=1.0))
    groups = inputs['groups']
    counts = {
        view: [(groups[view] == j).sum().item() for j in range(3)] for view in ('view_1', 'view_2')
    }
    assert counts['view_1'] != counts['view_2']
    for count in counts.values():
        assert count[0] == max(count) and len(set(count)) > 1
    assert inputs['mix_to_source'][1].tolist() == pytest.approx(
        [count / 64 for count in counts['view_2']]
    )
    # Local crops have one target, so their groups have equal sizes at different positions.
    local = groups['local_views']
    assert len({tuple(row.sort().values.tolist()) for row in local}) == 1
    assert len({tuple(row.tolist()) for row in local}) == 3


def test_num_mix_is_drawn_evenly_and_mix_prob_is_the_share_of_mixed_batches():
    views = dict.fromkeys(('view_1', 'view_2'), torch.randn(3, 3, 8, 8))
    torch.manual_seed(0)
    preprocessor = PatchMixDataPreprocessor(patch_size=4, num_mix=[1, 2, 4])
    sizes = [len(preprocessor.mix(views)['mix_to_source'][0]) for _ in range(90)]
    # 30 expected each, standard deviation 4.5: four of them leave 12 to 48.
    assert all(12 <= sizes.count(size) <= 48 for size in (1, 2, 4)) and set(sizes) == {1, 2, 4}
    preprocessor = PatchMixDataPreprocessor(patch_size=4, mix_prob=0.3)
    mixed = 0
    for _ in range(100):
        inputs = preprocessor.mix(views)
        is_mixed = not torch.equal(inputs['mixed_view_1'], views['view_1'])
        assert is_mixed == (len(inputs['mix_to_source'][0]) == 2)
        mixed += is_mixed
    assert 12 <= mixed <= 48  # 30 expected, standard deviation 4.6
    assert torch.equal(*(prepare(mix_prob=0.0)[name] for name in ('mixed_view_2', 'view_2')))


def test_evaluation_only_normalises():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    preprocessor = PatchMixDataPreprocessor(
        mean=MEAN, std=STD, augment=dict(view_1=dict(type='mmpatchmix.ViewAugment'))
    )
    data = preprocessor({'inputs': images.clone(), 'data_samples': [1, 2, 3, 4]}, training=False)
    torch.testing.assert_close(data['inputs'], normalised(images))
    assert data['data_samples'] == [1, 2, 3, 4]


def test_augmentation_is_that_of_the_view():
    """A view with solarization at 0 is inverted, the others are left alone."""
    invert = OFF | dict(type='mmpatchmix.ViewAugment', solarize_threshold=0.0, solarize_prob=1.0)
    batch = uint8_batch(num_local=2)
    raw = {name: view.clone() for name, view in batch['inputs'].items()}
    inputs = prepare(batch, augment=dict(local_views=invert))
    assert_close(inputs['local_views'].transpose(0, 1), normalised(255 - raw['local_views']))
    assert_close(inputs['view_2'], normalised(raw['view_2']))


def test_arguments_out_of_range_are_refused():
    wrong = [('num_mix', value) for value in (0, [], [2, 1.5])]
    wrong += [('shares', value) for value in ('unequal', {'alpha': 0}, {'alpha': 1, 'beta': 1})]
    for name, value in [*wrong, ('patch_size', 0), ('mix_prob', 1.2)]:
        with pytest.raises(ValueError, match=name):
            PatchMixDataPreprocessor(**{name: value})
    with pytest.raises(ValueError, match='view_3'):
        PatchMixDataPreprocessor(augment={'view_3': None})
    with pytest.raises(ValueError, match='draws its own'):
        PatchMixDataPreprocessor(shares=dict(alpha=1), mixing=dict(type='mmpatchmix.mix_up'))


def test_batches_are_not_changed_and_data_samples_stay():
    """Floating point batches of one's own, too, which could be normalised in place."""
    batch = uint8_batch(num_local=2)
    batch['inputs'] = {name: view.float() for name, view in batch['inputs'].items()}
    before = {name: view.clone() for name, view in batch['inputs'].items()}
    samples = batch['data_samples']
    preprocessor = PatchMixDataPreprocessor(patch_size=4, to_rgb=False)
    assert preprocessor(batch, training=True)['data_samples'] is samples
    for name, view in batch['inputs'].items():
        assert torch.equal(view, before[name])
