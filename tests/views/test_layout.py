"""Crops survive the way from the pipeline, through workers and collation, to the preprocessor."""

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import DataLoader

from mmpatchmix.models import PatchMixDataPreprocessor
from mmpatchmix.views import PackViews, unpack_views
from mmpatchmix.views.layout import allocate_views


class Crops(torch.utils.data.Dataset):
    """Samples of a pipeline on noise, and what each was packed from."""

    def __init__(self, num_local: int, num_images: int = 6) -> None:
        crop = dict(global_size=32, local_size=16, num_local=num_local)
        self.crop = TRANSFORMS.build(dict(type='mmpatchmix.MultiCrop', **crop))
        self.pack = TRANSFORMS.build(dict(type='mmpatchmix.PackViews'))
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def cut(self, index: int) -> dict:
        torch.manual_seed(index)
        img = np.random.default_rng(index).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        return self.crop({'img': img, 'gt_label': index % 2, 'sample_idx': index, 'img_path': 'a'})

    def __getitem__(self, index: int) -> dict:
        return self.pack(self.cut(index))


def make_views(num_local=2, global_size=8, local_size=4) -> dict:
    views = {
        'view_1': torch.randint(0, 256, (3, global_size, global_size), dtype=torch.uint8),
        'view_2': torch.randint(0, 256, (3, global_size, global_size), dtype=torch.uint8),
    }
    if num_local:
        shape = (num_local, 3, local_size, local_size)
        views['local_views'] = torch.randint(0, 256, shape, dtype=torch.uint8)
    return views


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('num_local', [0, 3])
def test_batches_hold_what_was_cut(num_local, num_workers):
    dataset = Crops(num_local)
    loader = DataLoader(
        dataset, batch_size=3, num_workers=num_workers, collate_fn=default_collate, pin_memory=False
    )
    shapes = {'view_1': (3, 3, 32, 32), 'view_2': (3, 3, 32, 32)}
    if num_local:
        shapes['local_views'] = (3, num_local, 3, 16, 16)
    number = 0
    for batch in loader:
        inputs = batch['inputs']
        assert inputs['sizes'].tolist() == [[32, num_local, 16 if num_local else 0]] * 3
        assert inputs['packed'].dtype == torch.uint8
        views = unpack_views(**inputs)
        assert {name: tuple(view.shape) for name, view in views.items()} == shapes
        for row, sample in enumerate(batch['data_samples']):
            expected = dataset.cut(number)
            for name, view in views.items():
                assert torch.equal(view[row], expected[name])
            assert sample.sample_idx == number
            assert sample.gt_label.item() == number % 2
            assert sample.img_path == 'a'
            number += 1
    assert number == 6


@pytest.mark.parametrize('leading', [(), (5,)])
def test_unpacking_copies_nothing(leading):
    sizes = (8, 2, 4)
    packed = torch.zeros(*leading, 3 * (2 * 64 + 2 * 16), dtype=torch.uint8)
    views = unpack_views(packed, torch.tensor(sizes).expand(*leading, 3))
    for value, view in enumerate(views.values(), start=1):
        view.fill_(value)
    rows = packed.reshape(-1, packed.shape[-1])
    # First all of view 1, then all of view 2, then the local crops: no overlap, no gap.
    for row in rows:
        assert row.tolist() == [1] * 192 + [2] * 192 + [3] * 96


def test_crops_of_any_layout_are_packed():
    views = make_views()
    sample = PackViews().transform(dict(views))
    for name, view in unpack_views(**sample['inputs']).items():
        assert torch.equal(view, views[name])


def test_the_buffer_of_the_crops_is_passed_on():
    packed, views = allocate_views(8, 2, 4)
    sample = PackViews().transform({'packed': packed, **views})
    assert sample['inputs']['packed'] is packed


@pytest.mark.parametrize('name', ['view_1', 'view_2', 'local_views'])
def test_a_replaced_crop_is_not_lost(name):
    packed, views = allocate_views(8, 2, 4)
    packed.fill_(1)
    views[name] = torch.full_like(views[name], 7)
    sample = PackViews().transform({'packed': packed, **views})
    for key, view in unpack_views(**sample['inputs']).items():
        assert view.unique().tolist() == [7 if key == name else 1]


def test_a_flipped_or_dropped_crop_is_not_lost():
    packed, views = allocate_views(8, 2, 4)
    packed.copy_(torch.arange(len(packed)))
    turned = views['view_2'].transpose(-1, -2)  # the same memory, other strides
    sample = PackViews().transform({'packed': packed, **views, 'view_2': turned})
    assert torch.equal(unpack_views(**sample['inputs'])['view_2'], turned)
    del views['local_views']
    sample = PackViews().transform({'packed': packed, **views})
    assert sample['inputs']['sizes'].tolist() == [8, 0, 0]
    assert set(unpack_views(**sample['inputs'])) == {'view_1', 'view_2'}


def test_the_preprocessor_takes_both_layouts():
    dataset = Crops(num_local=2)
    batch = default_collate([dataset[index] for index in range(4)])
    plain = unpack_views(**batch['inputs'])
    plain = {
        name: view.clone(memory_format=torch.contiguous_format) for name, view in plain.items()
    }
    preprocessor = PatchMixDataPreprocessor(
        patch_size=4, augment=dict(local_views=dict(type='mmpatchmix.PhotometricAugment'))
    )
    before = batch['inputs']['packed'].clone()
    torch.manual_seed(0)
    ours = preprocessor(batch, training=True)['inputs']
    torch.manual_seed(0)
    theirs = preprocessor({'inputs': plain}, training=True)['inputs']
    assert set(ours) == set(theirs)
    for name in ('view_1', 'view_2', 'local_views', 'mixed_view_1', 'mixed_local_views'):
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].is_contiguous()
    assert torch.equal(batch['inputs']['packed'], before)


def test_pack_views_without_label_or_crops():
    sample = PackViews().transform({**make_views(0), 'sample_idx': 7})
    assert 'gt_label' not in sample['data_samples']
    assert sample['data_samples'].sample_idx == 7
    with pytest.raises(ValueError, match=r'no view_2: put .*MultiCrop'):
        PackViews().transform({'view_1': make_views()['view_1'], 'img': np.zeros((8, 8, 3))})


def test_crops_that_do_not_fit_are_refused():
    views = make_views()
    with pytest.raises(ValueError, match='global crops of one size'):
        PackViews().transform({**views, 'view_2': views['view_2'][:, :4, :4]})
    with pytest.raises(ValueError, match='square uint8 crops'):
        PackViews().transform({**views, 'view_1': views['view_1'][:, :4]})
    with pytest.raises(ValueError, match=r'square uint8 crops .* view_2 of torch.float32'):
        PackViews().transform({**views, 'view_2': views['view_2'].float()})
    samples = [PackViews().transform(make_views(num_local)) for num_local in (1, 2)]
    inputs = samples[0]['inputs']
    with pytest.raises(ValueError, match=r'different sizes or numbers.*\[8, 1, 4\], \[8, 2, 4\]'):
        unpack_views(inputs['packed'], [[8, 1, 4], [8, 2, 4]])
    with pytest.raises(ValueError, match='are 480 values, but the packed views have 432'):
        unpack_views(inputs['packed'], samples[1]['inputs']['sizes'])
