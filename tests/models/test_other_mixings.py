"""Mixup, CutMix and ResizeMix: pixels against what the shares claim."""

import pytest
import torch
import torch.nn.functional as F

from mmpatchmix.models import PatchMixDataPreprocessor, cut_mix, mix_up, resize_mix
from mmpatchmix.models.mixing import shares_to_source
from tests.models.test_mixing import dense
from tests.models.tiny import uint8_batch

MIXINGS = [mix_up, cut_mix, resize_mix]
N = 5


def one_hot_images(size=16):
    """Image n is 1 in channel n and 0 elsewhere: a mean over pixels is a share."""
    return torch.eye(N)[:, :, None, None].expand(N, N, size, size).contiguous()


@pytest.mark.parametrize('mixing', MIXINGS)
@pytest.mark.parametrize('num_mix', [1, 2, 3, 4])
def test_shares_are_the_shares_of_the_pixels(mixing, num_mix):
    torch.manual_seed(num_mix)
    for _ in range(20):
        mixed, shares = mixing(one_hot_images(), num_mix)
        assert shares.shape == (num_mix,)
        seen = mixed.mean(dim=(2, 3)).double()  # (N, N), row n: share of each image
        torch.testing.assert_close(seen, dense(shares_to_source(shares), N), atol=1e-6, rtol=0)


@pytest.mark.parametrize('mixing', MIXINGS)
def test_shares_vary_and_follow_their_distribution(mixing):
    torch.manual_seed(0)
    images = torch.zeros(2, 1, 32, 32)
    second = torch.stack([mixing(images, 2)[1][1] for _ in range(2000)])
    # Uniform shares: mean 1/2. A box with a random centre loses some of its area at the border.
    # ResizeMix: the mean of u squared, u uniform in (0.1, 0.8), is 0.243.
    expected = {mix_up: (0.5, 0.02), cut_mix: (0.40, 0.10), resize_mix: (0.243, 0.02)}[mixing]
    assert second.std() > 0.1
    assert second.mean() == pytest.approx(expected[0], abs=expected[1])


def test_cut_mix_takes_one_box_from_the_same_place():
    torch.manual_seed(3)
    images = torch.randn(4, 3, 16, 20)
    mixed, shares = cut_mix(images, 2)
    other = (mixed != images).any(dim=1)  # (N, H, W)
    assert (other == other[0]).all()
    rows, columns = other[0].any(1).nonzero().flatten(), other[0].any(0).nonzero().flatten()
    assert other[0].sum() == len(rows) * len(columns) == round(float(shares[1]) * 16 * 20)
    for n in range(4):
        assert torch.equal(mixed[n][:, other[0]], images[(n + 1) % 4][:, other[0]])


@pytest.mark.parametrize('mixing', MIXINGS)
def test_bfloat16_is_mixed_as_float32_is(mixing):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        mixed, _ = mixing(one_hot_images().to(dtype), 3)
        assert mixed.dtype == dtype
        results.append(mixed.float())
    torch.testing.assert_close(*results, atol=0.01, rtol=0)


def test_resize_mix_pastes_the_whole_image_smaller():
    torch.manual_seed(1)
    images = torch.rand(4, 3, 16, 20)
    mixed, _ = resize_mix(images, 2, scale=(0.5, 0.5))
    other = (mixed != images).any(dim=1)[0]
    rows, columns = other.any(1).nonzero().flatten(), other.any(0).nonzero().flatten()
    assert (len(rows), len(columns)) == (8, 10)
    for n in range(4):
        pasted = mixed[n][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        whole = F.interpolate(images[[(n + 1) % 4]], (8, 10), mode='bilinear', antialias=True)[0]
        torch.testing.assert_close(pasted, whole)


@pytest.mark.parametrize('scale', [(0.0, 0.5), (0.5, 1.5), (0.8, 0.1)])
def test_resize_mix_refuses_other_ranges(scale):
    with pytest.raises(ValueError, match='0 < low <= high <= 1'):
        resize_mix(one_hot_images(), 2, scale=scale)


@pytest.mark.parametrize('name', ['mix_up', 'cut_mix', 'resize_mix'])
def test_preprocessor_takes_a_mixing_by_name(name):
    preprocessor = PatchMixDataPreprocessor(
        num_mix=3, patch_size=4, mixing=dict(type=f'mmpatchmix.{name}')
    )
    torch.manual_seed(0)
    inputs = preprocessor(uint8_batch(num_local=2), training=True)['inputs']
    assert 'groups' not in inputs
    for view in ('view_1', 'view_2', 'local_views'):
        assert inputs[f'mixed_{view}'].shape == inputs[view].shape
        assert not torch.equal(inputs[f'mixed_{view}'], inputs[view])
    for target, size in (('mix_to_source', 3), ('local_mix_to_source', 3), ('mix_to_mix', 5)):
        offsets, weights = inputs[target]
        assert len(offsets) == len(weights) == size
        assert weights.sum() == pytest.approx(1, abs=1e-6)


def test_local_crops_have_the_shares_of_their_target():
    preprocessor = PatchMixDataPreprocessor(num_mix=2, mixing=dict(type='mmpatchmix.cut_mix'))
    images = one_hot_images(8)
    crops = torch.stack([images, images])  # (L, N, C, h, w)
    mixed = preprocessor.mix(dict(view_1=images, view_2=images, local_views=crops))
    target = dense(mixed['local_mix_to_source'], N).float()
    for crop in mixed['mixed_local_views']:
        torch.testing.assert_close(crop.mean(dim=(2, 3)), target, atol=1e-6, rtol=0)


def test_unknown_mixing_and_alpha_of_zero_are_refused():
    for mixing in (dict(type='mmpatchmix.nothing'), dict(alpha=1.0), dict(type=None)):
        with pytest.raises(ValueError, match=r'data_preprocessor\.mixing'):
            PatchMixDataPreprocessor(mixing=mixing)
    with pytest.raises(ValueError, match='alpha=0'):
        mix_up(torch.zeros(2, 1, 4, 4), 2, alpha=0)
