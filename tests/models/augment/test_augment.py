"""The settings of a view, and what is drawn from them, against torchvision's transforms."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms as T

import mmpatchmix.registry  # noqa: F401
from mmpatchmix.models.augment import on_cpu, on_device
from mmpatchmix.models.augment.plan import BRIGHTNESS, CONTRAST
from mmpatchmix.models.augment.view_augment import ViewAugment
from tests.models.augment.plans import MEAN, STD, make_images, run

OFF = dict(color_jitter=None, grayscale_prob=0.0, blur_prob=0.0, solarize_prob=0.0, flip_prob=0.0)
STRENGTHS = (0.4, 0.4, 0.2, 0.1)
ALMOST_NEVER = 1e-4  # p-value below which a seeded statistical test fails


def test_jitter_is_distributed_as_torchvisions():
    torch.manual_seed(0)
    plan = ViewAugment(STRENGTHS).draw(3000, 32)
    reference = T.ColorJitter(*STRENGTHS)
    ranges = (reference.brightness, reference.contrast, reference.saturation, reference.hue)
    their_orders, *theirs = zip(
        *(T.ColorJitter.get_params(*ranges) for _ in range(3000)), strict=True
    )
    sigma = stats.uniform(0.1, 1.9)  # of the blur: 0.1 to 2
    assert stats.kstest(plan.sigma.numpy(), sigma.cdf).pvalue > ALMOST_NEVER
    for ours, others, strength, centre in zip(
        plan.factors.T.numpy(), theirs, STRENGTHS, (1, 1, 1, 0), strict=True
    ):
        assert stats.ks_2samp(ours, others).pvalue > ALMOST_NEVER
        uniform = stats.uniform(centre - strength, 2 * strength)
        assert stats.kstest(ours, uniform.cdf).pvalue > ALMOST_NEVER
    orders = [tuple(order) for order in plan.order.tolist()]
    their_orders = [tuple(order.tolist()) for order in their_orders]
    every = list(itertools.permutations(range(4)))
    counts = [[draws.count(order) for order in every] for draws in (orders, their_orders)]
    assert stats.chisquare(counts[0]).pvalue > ALMOST_NEVER
    assert stats.chi2_contingency(counts).pvalue > ALMOST_NEVER


def test_factors_never_become_negative():
    torch.manual_seed(0)
    factors = ViewAugment((1.5, 2.0, 1.0, 0.5)).draw(2000, 32).factors
    for values, largest in zip(factors[:, :3].T, (2.5, 3.0, 2.0), strict=True):
        uniform = stats.uniform(0, largest)  # as torchvision's [max(0, 1 - s), 1 + s]
        assert stats.kstest(values.numpy(), uniform.cdf).pvalue > ALMOST_NEVER
    assert (factors[:, 3].min() < -0.45) and (factors[:, 3].max() > 0.45)


def test_coins_are_independent_of_each_other_and_among_images():
    torch.manual_seed(0)
    plan = ViewAugment(blur_prob=0.5, solarize_prob=0.3).draw(4000, 32)
    coins = [getattr(plan, name).numpy() for name in ('jitter', 'grey', 'blur', 'solarize', 'flip')]
    among_images = [(coin[:-1], coin[1:]) for coin in coins]
    for first, second in [*itertools.combinations(coins, 2), *among_images]:
        table = np.histogram2d(first, second, bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > ALMOST_NEVER


def test_whole_augmentation_agrees_with_torchvisions_on_average():
    """The mean and the standard deviation of each pixel over many draws."""
    image = make_images(1, 16, 16)[0]
    steps = [
        T.RandomApply([T.ColorJitter(*STRENGTHS)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([T.GaussianBlur(3, (0.1, 2.0))], p=0.5),
        T.RandomSolarize(128 / 255, p=0.2),
        T.RandomHorizontalFlip(),
    ]
    torch.manual_seed(0)
    theirs = torch.stack([255 * T.Compose(steps)(image / 255) for _ in range(1000)])
    torch.manual_seed(0)
    plan = ViewAugment(STRENGTHS, blur_prob=0.5, solarize_prob=0.2).draw(3000, 16)
    for place in (on_cpu, on_device):
        ours = run(place, image.repeat(3000, 1, 1, 1), plan)
        # Half a level of rounding may decide whether a level at the threshold is inverted.
        error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt() + 0.2
        # 768 normal errors exceed 4.9 once in 1,300 such tests.
        assert ((ours.mean(0) - theirs.mean(0)).abs() / error).max() < 4.9
        torch.testing.assert_close(ours.std(0).mean(), theirs.std(0).mean(), rtol=0.03, atol=0)


@pytest.mark.parametrize('place', [on_cpu, on_device], ids=['cpu', 'device'])
@pytest.mark.parametrize(
    ('settings', 'prob'),
    [
        (dict(color_jitter=STRENGTHS, color_jitter_prob=0.8), 0.8),
        (dict(grayscale_prob=0.2), 0.2),
        (dict(blur_prob=0.1, blur_sigma=(1.0, 2.0)), 0.1),
        (dict(solarize_prob=0.3), 0.3),
        (dict(flip_prob=1.0), 1.0),
        (dict(blur_prob=0.9, blur_sigma=None, flip_prob=None), 0.0),
    ],
    ids=str,
)
def test_share_of_changed_images_is_the_probability(settings, prob, place):
    torch.manual_seed(0)
    images = make_images(1, 12, 12).repeat(1000, 1, 1, 1)
    out = run(place, images, ViewAugment(**OFF | settings).draw(1000, 12))
    changed = int((out != images).flatten(1).any(1).sum())
    assert stats.binomtest(changed, 1000, prob).pvalue > ALMOST_NEVER


def test_the_device_of_the_images_chooses(monkeypatch):
    images = make_images(4)
    augment = ViewAugment(blur_prob=0.5)
    torch.manual_seed(3)
    plan = augment.draw(4, 20)
    torch.manual_seed(3)
    assert torch.equal(augment(images, MEAN, STD), run(on_cpu, images, plan))
    seen = []
    monkeypatch.setattr(on_device, 'augment', lambda *args: seen.append(args))
    torch.manual_seed(3)
    augment(images.to('meta'), MEAN, STD)
    ((_, drawn, *_),) = seen
    for ours, theirs in zip(drawn, plan, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


@pytest.mark.parametrize(
    ('size', 'side'), [(224, 23), (96, 9), (64, 7), (32, 3), (16, 3), (384, 39)]
)
def test_blur_kernel_follows_simclr(size, side):
    # SimCLR: kernel_size = height // 10, radius = kernel_size // 2, taps = 2 * radius + 1.
    assert ViewAugment().draw(1, size).blur_side == side
    assert ViewAugment(blur_kernel=5).draw(1, size).blur_side == 5
    assert ViewAugment(blur_kernel=23).draw(1, 8).blur_side == 15  # reaches 7 pixels beyond


def test_wrong_arguments_and_images_are_refused():
    wrong = dict(flip_prob=1.2, color_jitter=(0.4, 0.4, 0.2, 0.6), blur_sigma=(2.0, 0.1))
    for name, value in (wrong | dict(blur_kernel=4, solarize_threshold=128)).items():
        with pytest.raises(ValueError, match=name):
            ViewAugment(**{name: value})
    of_double, no_batch = torch.zeros(2, 3, 8, 8).double(), torch.zeros(3, 8, 8).byte()
    for images in (of_double, no_batch, no_batch[:, None]):
        with pytest.raises(ValueError, match=r'\(N, 3, H, W\) images of uint8'):
            ViewAugment()(images, MEAN, STD)


@pytest.mark.parametrize('channels', [1, 2, 5])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_other_channels_get_brightness_contrast_blur_and_flip(channels, dtype):
    num = 12
    images = torch.randint(0, 256, (num, channels, 24, 20), dtype=torch.uint8).to(dtype)
    before = images.clone()
    settings = dict(grayscale_prob=1.0, solarize_prob=1.0, color_jitter_prob=1.0, blur_prob=0.5)
    augment = ViewAugment((0.4, 0.4, 0.2, 0.1), **settings)
    mean, std = torch.full((channels, 1, 1), 10.0), torch.full((channels, 1, 1), 3.0)
    torch.manual_seed(3)
    out = augment(images, mean, std)
    assert torch.equal(images, before)
    torch.manual_seed(3)
    plan = augment.draw(num, 20)
    for n in range(num):  # by hand, one image after another, in float64
        img = before[n].double()
        img = img.flip(2) if plan.flip[n] else img
        for operation in plan.order[n].tolist():
            factor = plan.factors[n, operation].double()
            if operation == BRIGHTNESS:
                img = (img * factor).clamp(0, 255)
            if operation == CONTRAST:
                centre = img.mean((1, 2), keepdim=True)
                img = (centre + (img - centre) * factor).clamp(0, 255)
        if plan.blur[n]:
            kernel = cv2.getGaussianKernel(plan.blur_side, float(plan.sigma[n]), cv2.CV_64F)
            planes = [
                cv2.sepFilter2D(plane, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
                for plane in img.numpy()
            ]
            img = torch.from_numpy(np.stack(planes))
        torch.testing.assert_close(out[n].double() * 3 + 10, img, atol=2e-3, rtol=1e-5)
    assert plan.blur.any() and plan.flip.any() and not plan.blur.all()


def test_float_photos_get_all_that_bytes_get():
    images = make_images()
    augment = ViewAugment(grayscale_prob=0.3, solarize_prob=0.3)
    torch.manual_seed(0)
    floats = augment(images.float(), MEAN, STD, to_rgb=True)
    torch.manual_seed(0)
    expected = run(on_device, images.flip(1), augment.draw(len(images), 20), is_bgr=True)
    assert torch.equal(floats, expected)
