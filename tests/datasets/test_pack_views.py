"""Crops survive the way from the pipeline, through workers and collation, to the preprocessor."""

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import DataLoader

import mmpatchmix.registry  # noqa: F401
from mmpatchmix.datasets.pack_views import PackViews, channels_first
from mmpatchmix.models import PatchMixDataPreprocessor


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


def make_views() -> dict:
    shapes = dict(view_1=(3, 8, 8), view_2=(3, 8, 8), local_views=(2, 3, 4, 4))
    return {name: torch.randint(0, 256, shape).byte() for name, shape in shapes.items()}


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('num_local', [0, 3])
def test_batches_hold_what_was_cut(num_local, num_workers):
    dataset = Crops(num_local)
    loader = DataLoader(dataset, batch_size=3, num_workers=num_workers, collate_fn=default_collate)
    shapes = {'view_1': (3, 32, 32, 3), 'view_2': (3, 32, 32, 3)}
    if num_local:
        shapes['local_views'] = (3, num_local, 16, 16, 3)
    number = 0
    for batch in loader:
        views = batch['inputs']
        assert {name: tuple(view.shape) for name, view in views.items()} == shapes
        for row, sample in enumerate(batch['data_samples']):
            expected = dataset.cut(number)
            for name, view in views.items():  # and no image
                assert view.dtype == torch.uint8 and view.is_contiguous()
                assert torch.equal(channels_first(view)[row], expected[name])
            assert sample.sample_idx == number
            assert sample.gt_label.item() == number % 2
            assert sample.img_path == 'a'
            number += 1
    assert number == 6


def test_crops_of_any_memory_layout_are_packed():
    views = make_views()
    last = {name: view.movedim(-3, -1).contiguous() for name, view in views.items()}
    strided = {name: view.movedim(-1, -3) for name, view in last.items()}
    for crops in (views, strided):
        inputs = PackViews().transform(dict(crops))['inputs']
        for name, view in inputs.items():
            assert torch.equal(view, last[name])
    # What the crops' own transform cut is passed on, not copied.
    assert all(inputs[name].data_ptr() == last[name].data_ptr() for name in last)


def test_the_preprocessor_takes_channels_first_and_last():
    batch = default_collate([Crops(num_local=2)[index] for index in range(4)])
    first = {name: channels_first(view) for name, view in batch['inputs'].items()}
    first = {'inputs': {name: view.contiguous() for name, view in first.items()}}
    preprocessor = PatchMixDataPreprocessor(
        patch_size=4, augment=dict(local_views=dict(type='mmpatchmix.ViewAugment'))
    )
    outs = []
    for data in (batch, first):
        torch.manual_seed(0)
        outs.append(preprocessor(data, training=True)['inputs'])
    for name in ('view_1', 'view_2', 'local_views', 'mixed_view_1', 'mixed_local_views'):
        assert torch.equal(outs[0][name], outs[1][name])
    assert outs[0]['local_views'].shape == (2, 4, 3, 16, 16)


def test_wrong_samples_are_refused():
    views = make_views()
    with pytest.raises(ValueError, match=r'no view_2: put dict.*LoadMultiCrop'):
        PackViews().transform({'view_1': views['view_1'], 'img': np.zeros((8, 8, 3))})
    with pytest.raises(ValueError, match='global crops of one shape'):
        PackViews().transform({**views, 'view_2': views['view_2'][:, :4, :4]})
    with pytest.raises(ValueError, match=r'view_1 of torch\.uint8, view_2 of torch\.float32'):
        PackViews().transform({**views, 'view_2': views['view_2'].float()})
