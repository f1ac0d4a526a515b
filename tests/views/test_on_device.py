"""The photometric augmentation against torchvision's, operation by operation and in distribution.

`operation` below always means the module's own path: images go in, and what it drew is read
back from kornia and replayed, image by image, with torchvision.
"""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from scipy import stats
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2 import functional as F

from mmpatchmix.views.on_device import PhotometricAugment, derive_blur_kernel

OFF = dict(
    color_jitter=None,
    grayscale_prob=0.0,
    blur_prob=0.0,
    solarize_prob=0.0,
    flip_prob=0.0,
)
# Kornia weighs red by 0.299 (ITU-R BT.601), torchvision by 0.2989: grey differs by up to 1e-4,
# a fortieth of one of 255 levels. Jitter passes it on, enlarged by the other factors.
GREY_TOLERANCE = 1.1e-4
ALMOST_NEVER = 1e-4  # p-value below which a seeded statistical test fails


def make_images(num: int = 8, height: int = 24, width: int = 20) -> torch.Tensor:
    """Noise, with the pixels where colour formulas go wrong: black, white, grey, pure, equal."""
    images = torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(1))
    special = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    special += [(0.7, 0.7, 0.2), (0.2, 0.7, 0.7), (0.7, 0.2, 0.7), (1e-6, 0, 0), (1, 1 - 1e-6, 1)]
    images[:, :, 0, : len(special)] = torch.tensor(special).T
    return images  # (N, 3, H, W)


def replay_jitter(image, params, row):
    operations = (
        (F.adjust_brightness, 'brightness_factor'),
        (F.adjust_contrast, 'contrast_factor'),
        (F.adjust_saturation, 'saturation_factor'),
        (F.adjust_hue, 'hue_factor'),
    )
    for number in params['order'].tolist():
        adjust, key = operations[number]
        image = adjust(image, params[key][row].item())
    return image


@pytest.mark.parametrize(
    ('strengths', 'tolerance'),
    [
        ((0.4, 0, 0, 0), 2e-6),
        ((0, 0.4, 0, 0), GREY_TOLERANCE),
        ((0, 0, 0.2, 0), GREY_TOLERANCE),
        ((0, 0, 0, 0.1), 5e-6),
        ((0, 0, 0, 0.5), 5e-6),
    ],
    ids=['brightness', 'contrast', 'saturation', 'hue', 'hue-full-circle'],
)
def test_one_jitter_operation_equals_torchvision(strengths, tolerance):
    torch.manual_seed(0)
    augment = PhotometricAugment(**{**OFF, 'color_jitter': strengths}, color_jitter_prob=1.0)
    images = make_images()
    out = augment(images)
    params = augment._jitter[0]._params
    for row, image in enumerate(images):
        expected = replay_jitter(image, params, row)
        torch.testing.assert_close(out[row], expected, rtol=0, atol=tolerance)
    assert (out - images).abs().amax(dim=(1, 2, 3)).min() > 1e-3, 'an image was left alone'


def test_whole_jitter_equals_torchvision_in_every_drawn_order():
    torch.manual_seed(0)
    strengths = (0.4, 0.4, 0.2, 0.1)
    augment = PhotometricAugment(**{**OFF, 'color_jitter': strengths}, color_jitter_prob=1.0)
    images = make_images(4)
    orders = set()
    for _ in range(60):
        out = augment(images)
        params = augment._jitter[0]._params
        orders.add(tuple(params['order'].tolist()))
        expected = torch.stack([replay_jitter(x, params, row) for row, x in enumerate(images)])
        # Later operations enlarge a grey difference; 2e-4 is a twentieth of a level.
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)
    assert len(orders) >= 20  # of 24


def test_grayscale_equals_torchvision():
    images = make_images()
    out = PhotometricAugment(**{**OFF, 'grayscale_prob': 1.0})(images)
    expected = F.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(out, expected, rtol=0, atol=GREY_TOLERANCE)


@pytest.mark.parametrize(
    ('height', 'width', 'kernel'), [(24, 20, None), (32, 32, None), (64, 50, 9), (224, 224, None)]
)
def test_blur_equals_torchvision(height, width, kernel):
    torch.manual_seed(0)
    augment = PhotometricAugment(**{**OFF, 'blur_prob': 1.0}, blur_kernel=kernel)
    images = make_images(3, height, width)
    out = augment(images)
    ((side, blur),) = augment._blurs.items()
    sigmas = blur._params['sigma'].tolist()
    assert len(set(sigmas)) == 3
    for image, result, sigma in zip(images, out, sigmas, strict=True):
        expected = F.gaussian_blur(image, [side, side], [sigma, sigma])
        # Two 1-d convolutions here, one 2-d there: float32 rounding.
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ('size', 'kernel'), [(224, 23), (96, 9), (64, 7), (32, 3), (16, 3), (384, 39)]
)
def test_blur_kernel_follows_simclr(size, kernel):
    # SimCLR: kernel_size = height // 10, radius = kernel_size // 2, taps = 2 * radius + 1.
    assert derive_blur_kernel(size) == kernel


def test_solarize_equals_torchvision_on_every_uint8_value():
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels.reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    out = PhotometricAugment(**{**OFF, 'solarize_prob': 1.0})(images.float() / 255)
    expected = F.solarize(images, threshold=128)
    assert torch.equal((out * 255).round().to(torch.uint8), expected)


def test_flip_mirrors_left_and_right():
    images = make_images()
    out = PhotometricAugment(**{**OFF, 'flip_prob': 1.0})(images)
    assert torch.equal(out, F.horizontal_flip(images))


def test_operations_run_in_torchvisions_usual_order():
    torch.manual_seed(0)
    augment = PhotometricAugment(
        color_jitter_prob=1, grayscale_prob=1, blur_prob=1, solarize_prob=1, flip_prob=1
    )
    images = make_images(4)
    out = augment(images)
    params = augment._jitter[0]._params
    ((side, blur),) = augment._blurs.items()
    for row, image in enumerate(images):
        sigma = blur._params['sigma'][row].item()
        image = replay_jitter(image, params, row)
        image = F.rgb_to_grayscale(image, num_output_channels=3)
        image = F.gaussian_blur(image, [side, side], [sigma, sigma])
        near = (image - 128 / 255).abs() < 1e-3  # either side of the threshold may be right
        image = F.horizontal_flip(F.solarize(image, 128 / 255))
        keep = ~F.horizontal_flip(near)
        torch.testing.assert_close(out[row][keep], image[keep], rtol=0, atol=4e-4)


def test_jitter_factors_and_order_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    strengths = (0.4, 0.4, 0.2, 0.1)
    augment = PhotometricAugment(**{**OFF, 'color_jitter': strengths}, color_jitter_prob=1.0)
    reference = ColorJitter(*strengths)
    drawn = [[] for _ in range(4)]
    theirs = [[] for _ in range(4)]
    orders, their_orders = [], []
    for _ in range(1200):
        augment(torch.rand(1, 3, 2, 2))
        params = augment._jitter[0]._params
        names = ('brightness_factor', 'contrast_factor', 'saturation_factor', 'hue_factor')
        for values, name in zip(drawn, names, strict=True):
            values += params[name].tolist()
        orders.append(tuple(params['order'].tolist()))
        order, *factors = ColorJitter.get_params(
            reference.brightness, reference.contrast, reference.saturation, reference.hue
        )
        their_orders.append(tuple(order.tolist()))
        for values, factor in zip(theirs, factors, strict=True):
            values.append(factor)
    for ours, others, strength, centre in zip(drawn, theirs, strengths, (1, 1, 1, 0), strict=True):
        assert stats.ks_2samp(ours, others).pvalue > ALMOST_NEVER
        uniform = stats.uniform(centre - strength, 2 * strength)
        assert stats.kstest(ours, uniform.cdf).pvalue > ALMOST_NEVER
    all_orders = list(itertools.permutations(range(4)))
    counts = [[draws.count(order) for order in all_orders] for draws in (orders, their_orders)]
    assert stats.chisquare(counts[0]).pvalue > ALMOST_NEVER
    assert stats.chi2_contingency(counts).pvalue > ALMOST_NEVER


def test_blur_sigma_is_uniform_and_drawn_per_image():
    torch.manual_seed(0)
    augment = PhotometricAugment(**{**OFF, 'blur_prob': 1.0})
    augment(torch.rand(2000, 3, 4, 4))
    sigmas = augment._blurs[3]._params['sigma'].numpy()
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > ALMOST_NEVER


@pytest.mark.parametrize(
    ('name', 'prob', 'settings'),
    [
        ('color_jitter_prob', 0.8, dict(color_jitter=(0.4, 0.4, 0.2, 0.1))),
        ('grayscale_prob', 0.2, {}),
        ('blur_prob', 0.1, {}),
        ('solarize_prob', 0.2, {}),
        ('flip_prob', 0.5, {}),
    ],
)
def test_share_of_changed_images_is_the_probability(name, prob, settings):
    torch.manual_seed(0)
    augment = PhotometricAugment(**{**OFF, **settings, name: prob})
    images = make_images(1, 12, 12).repeat(3000, 1, 1, 1)
    changed = (augment(images) != images).flatten(1).any(1)
    assert stats.binomtest(int(changed.sum()), 3000, prob).pvalue > ALMOST_NEVER


def test_two_operations_are_drawn_independently():
    torch.manual_seed(0)
    augment = PhotometricAugment(**{**OFF, 'solarize_prob': 0.3, 'flip_prob': 0.5})
    image = torch.zeros(1, 3, 1, 2)
    image[..., 1] = 1.0  # black, white: mirrored if flipped, both black if solarized
    out = augment(image.repeat(4000, 1, 1, 1))[:, 0, 0]
    solarized = (out.sum(1) == 0).numpy()
    assert stats.binomtest(int(solarized.sum()), 4000, 0.3).pvalue > ALMOST_NEVER
    # A flip shows on the images that were not solarized, and those must be half of them.
    flipped = (out[~solarized][:, 0] == 1).numpy()
    assert stats.binomtest(int(flipped.sum()), len(flipped), 0.5).pvalue > ALMOST_NEVER
    # Coins of neighbouring images are independent too.
    table = np.histogram2d(solarized[:-1], solarized[1:], bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > ALMOST_NEVER


def test_torchs_global_generator_decides():
    augment = PhotometricAugment()
    images = make_images()
    torch.manual_seed(3)
    first = augment(images)
    torch.manual_seed(3)
    again = augment(images)
    other = augment(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_of_a_batch_get_their_own_parameters():
    torch.manual_seed(0)
    augment = PhotometricAugment(color_jitter_prob=1.0, grayscale_prob=0.0, flip_prob=0.0)
    out = augment(make_images(1).repeat(6, 1, 1, 1))
    for first, second in itertools.combinations(out, 2):
        assert (first - second).abs().max() > 1e-3


def test_input_is_left_alone_and_output_stays_in_range():
    torch.manual_seed(0)
    images = make_images(16) * 1.5 - 0.25
    before = images.clone()
    out = PhotometricAugment((0.8, 0.8, 0.8, 0.5), blur_prob=1.0, solarize_prob=0.5)(images)
    assert torch.equal(images, before)
    assert out.min() >= 0 and out.max() <= 1
    assert out.is_contiguous()


def test_everything_off_only_clamps():
    images = make_images() * 1.5 - 0.25
    assert torch.equal(PhotometricAugment(**OFF)(images), images.clamp(0, 1))
    none = dict(color_jitter=None, blur_sigma=None, grayscale_prob=None, solarize_prob=None)
    assert torch.equal(PhotometricAugment(**none, flip_prob=None)(images), images.clamp(0, 1))


@pytest.mark.parametrize('num', [0, 1, 3])
def test_any_batch_size_and_flattened_local_crops(num):
    torch.manual_seed(0)
    local_views = torch.rand(num, 8, 3, 32, 32)  # (N, L, 3, h, w)
    out = PhotometricAugment(blur_prob=0.5)(local_views.flatten(0, 1))
    assert out.shape == (num * 8, 3, 32, 32)


def test_half_precision_and_autocast_compute_in_float32():
    images = make_images().bfloat16()
    augment = PhotometricAugment(blur_prob=1.0, solarize_prob=0.2)
    torch.manual_seed(5)
    expected = augment(images.float())
    torch.manual_seed(5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = augment(images)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


def test_host_never_reads_from_the_device(monkeypatch):
    # The meta device has no values: reading one (.item(), if tensor:, a mask as index) raises.
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: contextlib.nullcontext())
    torch.manual_seed(0)
    augment = PhotometricAugment(blur_prob=0.5, solarize_prob=0.5).to('meta')
    images = torch.empty(16, 3, 32, 32, device='meta')
    for _ in range(4):
        assert augment(images).shape == (16, 3, 32, 32)
    with pytest.raises(NotImplementedError):  # what a mask on the device would do
        images[images.mean(dim=(1, 2, 3)) > 0.5].sum()


def test_registered_and_without_state():
    augment = MMPRETRAIN_MODELS.build(dict(type='mmpatchmix.PhotometricAugment'))
    assert isinstance(augment, PhotometricAugment)
    assert not augment.state_dict()
    assert 'flip_prob=0.5' in repr(augment)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(flip_prob=1.2), 'flip_prob'),
        (dict(color_jitter=(0.4, 0.4, 0.2)), 'color_jitter'),
        (dict(color_jitter=(0.4, 0.4, 0.2, 0.6)), 'color_jitter'),
        (dict(blur_sigma=(0.0, 2.0)), 'blur_sigma'),
        (dict(blur_sigma=(2.0, 0.1)), 'blur_sigma'),
        (dict(blur_kernel=4), 'blur_kernel'),
        (dict(solarize_threshold=128), '128 / 255'),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PhotometricAugment(**settings)


@pytest.mark.parametrize(
    'images',
    [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8)],
    ids=['uint8', 'no batch', 'one channel'],
)
def test_wrong_images_are_refused(images):
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\) floating point'):
        PhotometricAugment()(images)
