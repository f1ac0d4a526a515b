import pytest
import torch
from torch.nn import functional as F

from mmpatchmix.models.detection import SimpleFeaturePyramid, ViTPyramid


def test_vit_pyramid_reaches_its_strides():
    neck = ViTPyramid(8, patch_size=16, strides=(4, 8, 16, 32))
    maps = [5 * torch.randn(2, 8, 4, 6) + 1 for _ in range(4)]
    levels = neck(maps)
    shapes = [tuple(level.shape[1:]) for level in levels]
    assert shapes == [(8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3)]
    normed = [
        (x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt() for x in maps
    ]
    torch.testing.assert_close(levels[2], normed[2])
    torch.testing.assert_close(levels[3], F.max_pool2d(normed[3], 2))
    expected = F.conv_transpose2d(normed[1], neck.resize[1][0].weight, neck.resize[1][0].bias, 2)
    torch.testing.assert_close(levels[1], expected)


def test_simple_feature_pyramid_makes_every_level_from_the_last_map():
    neck = SimpleFeaturePyramid(16, 8, patch_size=8, strides=(4, 8, 16), num_outs=4)
    last = torch.randn(2, 16, 6, 4, requires_grad=True)
    levels = neck((torch.full_like(last, torch.nan), last))
    shapes = [tuple(level.shape[1:]) for level in levels]
    assert shapes == [(8, 12, 8), (8, 6, 4), (8, 3, 2), (8, 2, 1)]
    assert torch.equal(levels[3], levels[2][:, :, ::2, ::2])
    for level in levels:  # the LayerNorm over channels that each level ends with
        assert level.isfinite().all()
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), atol=1e-5, rtol=0)


def test_an_unreachable_stride_and_too_many_maps_are_refused():
    for kind in (ViTPyramid, SimpleFeaturePyramid):
        with pytest.raises(ValueError, match='stride of 12 cannot be reached from patches of 16'):
            kind(16, patch_size=16, strides=(12, 16))
    with pytest.raises(ValueError, match='3 maps and the pyramid has 2 levels'):
        ViTPyramid(8, strides=(8, 16))([torch.zeros(1, 8, 2, 2)] * 3)
