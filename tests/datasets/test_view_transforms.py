"""The test view against mmpretrain's, and views made by any transforms."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import TRANSFORMS

from mmpatchmix.datasets import ResizeCentre, TransformViews, view_transforms
from tests.datasets.any_images import make_noise

AFFINE = [
    dict(type='mmpretrain.NumpyToPIL'),
    dict(type='mmpretrain.torchvision/RandomAffine', degrees=90, translate=(0.2, 0.2)),
    dict(type='mmpretrain.PILToNumpy'),
]


def image():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def test_each_view_is_drawn_anew_and_the_image_stays():
    torch.manual_seed(0)
    transform = TRANSFORMS.build(dict(type='mmpatchmix.TransformViews', transforms=AFFINE))
    original = image()
    results = transform(dict(img=original, gt_label=3))
    assert results['gt_label'] == 3 and np.array_equal(original, image())
    assert not torch.equal(results['view_1'], results['view_2'])
    transform = TransformViews([dict(type='RandomFlip', prob=1.0, direction='horizontal')])
    results = transform(dict(img=image()))
    expected = torch.from_numpy(image()[:, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(results['view_1'], expected) and torch.equal(results['view_2'], expected)
    with pytest.raises(ValueError, match='TransformViews needs a uint8 or float32 image'):
        TransformViews(AFFINE[:1])(dict(img=image()))


@pytest.mark.parametrize('shape', [(300, 400), (500, 333), (100, 90)])
def test_the_test_view_of_photos_equals_mmpretrains(shape):
    img = make_noise((*shape, 3))
    theirs = {'img': img}
    for step in (
        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=224),
    ):
        theirs = TRANSFORMS.build(step)(theirs)
    ours = ResizeCentre(224)({'img': img})
    assert ours['img'].shape == (224, 224, 3) == theirs['img'].shape
    assert np.abs(ours['img'].astype(int) - theirs['img']).max() <= 2


def test_the_test_view_of_other_shapes_keeps_the_proportions():
    # A ramp along each axis: after resizing, the steps are equal in both.
    rows, columns = np.mgrid[0:210, 0:400].astype(np.float32)
    img = np.stack([rows / 2, columns / 2], -1)
    view = ResizeCentre((64, 128)).transform({'img': img})['img']
    assert view.shape == (64, 128, 2)
    steps = np.diff(view[10:-10, :, 0], axis=0).mean(), np.diff(view[:, 10:-10, 1], axis=1).mean()
    assert steps[0] == pytest.approx(steps[1], rel=0.01)
    assert view[31:33, 63:65].mean((0, 1)) == pytest.approx([52, 99.5], abs=1)


@pytest.mark.parametrize('shape', [(4, 2000), (2000, 4)])
def test_of_a_strip_only_the_middle_is_enlarged(shape, monkeypatch):
    seen = []
    monkeypatch.setattr(view_transforms, 'resize', lambda img, out: seen.append(out.shape))
    ResizeCentre(16)(dict(img=make_noise((*shape, 3))))
    assert max(seen[0][2:]) <= 8 * 20
    monkeypatch.undo()
    # Rows or columns that grow from the middle: the view is centred on the same pixels.
    ramp = np.abs(np.arange(2000) - 999.5).astype(np.float32) / 10
    img = np.broadcast_to(ramp[None, :, None], (4, 2000, 3))
    img = img if shape[0] == 4 else img.transpose(1, 0, 2)
    view = ResizeCentre(16)(dict(img=np.ascontiguousarray(img)))['img']
    # Centred up to half a pixel of the view, as the crop is rounded to whole ones.
    part = view[:, :-1] if shape[0] == 4 else view[:-1]
    assert np.allclose(part, part[::-1, ::-1], atol=1e-3) and view.shape == (16, 16, 3)


@pytest.mark.parametrize('shape', [(20, 601), (601, 20), (160, 20), (30, 40), (20, 400)])
def test_the_centre_crop_of_resized_middles_equals_that_of_whole_images(shape):
    # Smooth: a shift by one pixel of the view, as crops are rounded, changes values by up to 5.
    rows, columns = (np.sin(np.arange(n) / 4)[:, None] for n in shape)
    img = (127 + 60 * rows + 60 * columns.T).astype(np.uint8)[:, :, None].repeat(3, 2)
    resize = dict(scale=73, edge='short', backend='pillow', interpolation='bicubic')
    views, sizes = [], []
    for prefix in ('', 'mmpatchmix.'):
        resized = TRANSFORMS.build(dict(type=f'{prefix}ResizeEdge', **resize))(dict(img=img))
        sizes.append(resized['img'].shape)
        views.append(TRANSFORMS.build(dict(type='CenterCrop', crop_size=64))(resized)['img'])
    theirs, ours = views
    if max(shape) <= 8 * min(shape):
        assert np.array_equal(ours, theirs) and sizes[0] == sizes[1]
    else:
        assert max(sizes[1]) <= 9 * 73 < max(sizes[0])
        assert np.abs(ours.astype(int) - theirs).max() <= 5
