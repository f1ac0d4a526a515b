"""Views by any transforms."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import TRANSFORMS

from mmpatchmix.datasets import TransformViews

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
    first, second = results['view_1'], results['view_2']
    assert first.shape == second.shape == (3, 12, 16) and first.dtype == torch.uint8
    assert not torch.equal(first, second)


def test_the_views_are_what_the_transforms_give():
    transform = TransformViews([dict(type='RandomFlip', prob=1.0, direction='horizontal')])
    results = transform(dict(img=image()))
    for name in ('view_1', 'view_2'):
        expected = torch.from_numpy(image()[:, ::-1].copy()).permute(2, 0, 1)
        assert torch.equal(results[name], expected)


def test_views_that_are_no_uint8_images_are_refused():
    with pytest.raises(ValueError, match='TransformViews needs a uint8 or float32 image'):
        TransformViews(AFFINE[:1])(dict(img=image()))
