"""Augmentation in the workers against torchvision, operation by operation and in distribution."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as F

from mmpatchmix.views import AugmentViews, PhotometricAugment

OFF = dict(color_jitter=None, grayscale_prob=0.0, blur_prob=0.0, solarize_prob=0.0, flip_prob=0.0)
ALMOST_NEVER = 1e-4  # p-value below which a seeded statistical test fails
RGB, BGR = ['rgb', 'bgr']


def make_crop(size: int = 48) -> torch.Tensor:
    """Noise, with black, white, grey, pure and nearly grey colours: (3, H, W) uint8, RGB."""
    generator = torch.Generator().manual_seed(0)
    crop = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
    special = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    special += [(180, 180, 50), (50, 180, 180), (180, 50, 180), (1, 0, 0), (255, 254, 255)]
    crop[:, 0, : len(special)] = torch.tensor(special, dtype=torch.uint8).T
    return crop


def apply(crop: torch.Tensor, order: str, operation) -> torch.Tensor:
    """Let ``operation(augment, img)`` change a copy of an RGB crop, stored in ``order``."""
    augment = AugmentViews(view_1=OFF, channel_order=order).augment['view_1']
    img = crop.flip(0) if order == BGR else crop
    img = img.permute(1, 2, 0).contiguous()
    operation(augment, img.numpy())
    out = img.permute(2, 0, 1)
    return out.flip(0) if order == BGR else out


def assert_within_a_level(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 0.51):
    """``exact`` is floating point in [0, 1]: half a level is the rounding itself."""
    difference = (ours.double() - 255 * exact.double()).abs()
    assert difference.max() <= tolerance


@pytest.mark.parametrize('order', [RGB, BGR])
@pytest.mark.parametrize(
    ('name', 'values', 'adjust', 'tolerance'),
    [
        ('brightness', (0.6, 1.0, 1.37), F.adjust_brightness, 0.51),
        # Grey weighs red by 0.299 here, by 0.2989 there: up to 0.4 * 1e-4 * 255 levels more.
        ('contrast', (0.6, 1.0, 1.37), F.adjust_contrast, 0.53),
        # OpenCV mixes channels in fixed point.
        ('saturation', (0.0, 0.8, 1.0, 1.2), F.adjust_saturation, 1.0),
        ('hue', (-0.5, -0.1, -0.01, 0.0, 0.03, 0.1, 0.5), F.adjust_hue, 0.51),
    ],
)
def test_jitter_equals_torchvision(order, name, values, adjust, tolerance):
    crop = make_crop()
    for value in values:
        ours = apply(crop, order, lambda augment, img, v=value: getattr(augment, name)(img, v))
        assert_within_a_level(ours, adjust(crop.float() / 255, value), tolerance)


@pytest.mark.parametrize('order', [RGB, BGR])
def test_hue_keeps_the_colours_it_should(order):
    """A third of the circle takes red to green, green to blue, blue to red."""
    crop = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)[:, None]
    ours = apply(crop, order, lambda augment, img: augment.hue(img, 1 / 3))
    assert torch.equal(ours, crop.roll(1, 0))


@pytest.mark.parametrize(('size', 'kernel'), [(224, 23), (96, 9), (32, 3), (48, 7)])
@pytest.mark.parametrize('sigma', [0.1, 0.31, 1.0, 2.0])
def test_blur_equals_torchvision(size, kernel, sigma):
    crop = make_crop(size)
    settings = {**OFF, 'blur_kernel': kernel if size == 48 else None}
    img = crop.permute(1, 2, 0).contiguous()
    AugmentViews(view_1=settings).augment['view_1'].blur(img.numpy(), sigma)
    exact = F.gaussian_blur(crop.float() / 255, [kernel, kernel], [sigma, sigma])
    # Half a level, and the tail beyond four sigma: 6e-5 of 255 for each direction.
    assert_within_a_level(img.permute(2, 0, 1), exact, 0.54)


@pytest.mark.parametrize('order', [RGB, BGR])
@pytest.mark.parametrize(
    ('settings', 'exact', 'tolerance'),
    [
        # Half a level, and as much again for the weight of red.
        (dict(grayscale_prob=1.0), lambda crop: F.rgb_to_grayscale(crop / 255, 3), 0.53),
        (dict(solarize_prob=1.0), lambda crop: F.solarize(crop.byte(), 128) / 255, 1e-4),
        (
            dict(solarize_prob=1.0, solarize_threshold=0.0),
            lambda crop: (255 - crop) / 255,
            1e-4,
        ),
        (dict(flip_prob=1.0), lambda crop: F.horizontal_flip(crop) / 255, 1e-4),
    ],
    ids=['grayscale', 'solarize', 'solarize-all', 'flip'],
)
def test_other_operations_equal_torchvision(order, settings, exact, tolerance):
    crop = make_crop()
    stored = crop.flip(0) if order == BGR else crop.clone()
    transform = AugmentViews(view_2={**OFF, **settings}, channel_order=order)
    out = transform.transform({'view_1': crop.clone(), 'view_2': stored})
    assert torch.equal(out['view_1'], crop)
    view = out['view_2'].flip(0) if order == BGR else out['view_2']
    assert_within_a_level(view, exact(crop.float()), tolerance)


def test_operations_run_in_the_order_of_the_device():
    """Solarized after grey after jitter; on flat crops a blur changes nothing."""
    settings = dict(
        color_jitter=(0.4, 0, 0, 0),
        color_jitter_prob=1.0,
        grayscale_prob=1.0,
        blur_prob=1.0,
        solarize_prob=1.0,
        flip_prob=1.0,
    )
    transform = AugmentViews(view_1=settings, channel_order='rgb')
    levels = set()
    for seed in range(200):
        torch.manual_seed(seed)
        crop = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None].repeat(1, 16, 16)
        level = transform.transform({'view_1': crop})['view_1'].unique().tolist()
        assert len(level) == 1  # grey, hence after the jitter of red alone
        levels.add(level[0])
    # Grey of 200 x [0.6, 1.4], red clipped at 255, is 36 to 76: below the threshold, kept.
    assert min(levels) in (36, 37) and max(levels) == 76


def count(settings: dict, changed, num: int = 400) -> int:
    """How many of ``num`` crops, seeded, an operation has changed."""
    torch.manual_seed(0)
    transform = AugmentViews(local_views={**OFF, **settings}, channel_order='rgb')
    crops = make_crop(12)[None].repeat(num, 1, 1, 1)
    out = transform.transform({'local_views': crops.clone()})['local_views']
    return sum(changed(before, after) for before, after in zip(crops, out, strict=True))


@pytest.mark.parametrize(
    ('settings', 'prob'),
    [
        (dict(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_prob=0.8), 0.8),
        (dict(grayscale_prob=0.2), 0.2),
        (dict(blur_prob=0.1, blur_sigma=(1.0, 2.0)), 0.1),
        (dict(solarize_prob=0.3), 0.3),
        (dict(flip_prob=0.5), 0.5),
        (dict(blur_prob=0.9, blur_sigma=None), 0.0),
        (dict(flip_prob=None), 0.0),
    ],
    ids=['jitter', 'grayscale', 'blur', 'solarize', 'flip', 'no blur', 'no flip'],
)
def test_each_coin_has_its_probability_for_every_crop(settings, prob):
    changed = count(settings, lambda before, after: not torch.equal(before, after))
    if prob == 0:
        assert changed == 0
    else:
        assert stats.binomtest(changed, 400, prob).pvalue > ALMOST_NEVER


def test_coins_are_independent():
    torch.manual_seed(0)
    settings = {**OFF, 'flip_prob': 0.5, 'solarize_prob': 0.5}
    transform = AugmentViews(local_views=settings, channel_order='rgb')
    crop = torch.arange(16, dtype=torch.uint8).expand(3, 4, 16)
    crop = crop.clone() + torch.tensor([0, 200], dtype=torch.uint8).repeat(8)  # both sides of 128
    crops = crop[None].repeat(400, 1, 1, 1)
    out = transform.transform({'local_views': crops.clone()})['local_views']
    table = np.zeros((2, 2))
    for view in out:
        # Columns alternate between dark and light; solarized, all of them are dark.
        is_solarized = int(view.max() < 128)
        is_flipped = int(view[0, 0, 0] > view[0, 0, 15] if is_solarized else view[0, 0, 0] > 127)
        table[is_flipped, is_solarized] += 1
    assert stats.chisquare(table.flatten()).pvalue > ALMOST_NEVER


def test_factors_have_the_distribution_of_the_device():
    """The brightness of a grey crop tells the factor; uniform in [0.6, 1.4] in both places."""
    settings = {**OFF, 'color_jitter': (0.4, 0, 0, 0), 'color_jitter_prob': 1.0}
    crops = torch.full((500, 3, 4, 4), 150, dtype=torch.uint8)
    torch.manual_seed(0)
    transform = AugmentViews(local_views=settings)
    ours = transform.transform({'local_views': crops.clone()})['local_views'][:, 0, 0, 0]
    device = PhotometricAugment(**settings)(crops.float() / 255)[:, 0, 0, 0]
    uniform = stats.uniform(0.6 * 150, 0.8 * 150)
    # Whole levels are 1 / 120 of the range: far below what 500 crops resolve (0.09).
    assert stats.kstest(ours.numpy(), uniform.cdf).pvalue > ALMOST_NEVER
    assert stats.ks_2samp(ours.numpy(), 255 * device.numpy()).pvalue > ALMOST_NEVER


def test_whole_augmentation_agrees_with_the_device_on_average():
    """The mean over many draws of each pixel, in one place and in the other."""
    settings = dict(blur_prob=0.5, solarize_prob=0.2, grayscale_prob=0.3)
    crop = make_crop(16)
    crops = crop[None].repeat(3000, 1, 1, 1)
    torch.manual_seed(0)
    transform = AugmentViews(local_views=settings, channel_order='rgb')
    ours = transform.transform({'local_views': crops.clone()})['local_views'].float()
    device = 255 * PhotometricAugment(**settings)(crops.float() / 255)
    error = (ours.var(0) + device.var(0)).div(3000).sqrt() + 0.1
    # 768 normal errors exceed 4.9 once in 1,300 such tests; a level of bias would be seen.
    assert ((ours.mean(0) - device.mean(0)).abs() / error).max() < 4.9
    assert (ours.mean() - device.mean()).abs() < 1.5
    torch.testing.assert_close(ours.std(0).mean(), device.std(0).mean(), rtol=0.03, atol=0)


def test_memory_layout_does_not_matter_and_seeds_do():
    settings = dict(blur_prob=1.0)
    transform = AugmentViews(view_1=settings)
    crop = make_crop()
    last = crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    outs = []
    for view, seed in ((crop.clone(), 0), (last.clone(), 0), (crop.clone(), 1)):
        torch.manual_seed(seed)
        outs.append(transform.transform({'view_1': view})['view_1'])
        assert outs[-1] is view  # in place
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"view_2 has no \['blur'\]"):
        AugmentViews(view_2=dict(blur=0.5))
    with pytest.raises(ValueError, match='blur_prob must lie in'):
        AugmentViews(view_2=dict(blur_prob=1.5))
    with pytest.raises(ValueError, match='channel_order'):
        AugmentViews(channel_order='RGB')
    assert "view_1={'color_jitter'" in repr(AugmentViews(view_1={}))
