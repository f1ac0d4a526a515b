"""Crops against torchvision's own RandomResizedCrop, and against Pillow's resize."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from mmpatchmix.datasets import MultiCrop


def make_image(height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth shapes, fine texture and noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    image = np.where(rng.random((height, width, 1)) < 0.3, noise, ramp).astype(np.uint8)
    cv2.circle(image, (width // 2, height // 2), height // 4, (255, 0, 40), -1)
    return image


def torchvision_crops(source, num_local=0, ratio=(3 / 4, 4 / 3)):
    """Two global crops and the local ones, drawn one after another like MultiCrop's."""
    bicubic = {'interpolation': InterpolationMode.BICUBIC, 'antialias': True, 'ratio': ratio}
    crop = v2.RandomResizedCrop(64, scale=(0.35, 1.0), **bicubic)
    crop_local = v2.RandomResizedCrop(32, scale=(0.05, 0.35), **bicubic)
    return [crop(source), crop(source), *(crop_local(source) for _ in range(num_local))]


def our_crops(image, num_local=0, ratio=(3 / 4, 4 / 3)):
    transform = MultiCrop(64, (0.35, 1.0), 32, (0.05, 0.35), num_local, ratio)
    results = transform.transform({'img': image})
    return [results['view_1'], results['view_2'], *results.get('local_views', ())]


def weigh_slowly(size: int, new_size: int) -> np.ndarray:
    """Keys' cubic (a = -0.5), widened when shrinking: (new_size, size) float64."""
    scale = size / new_size
    widening = max(scale, 1.0)
    weights = np.zeros((new_size, size))
    for out, place in itertools.product(range(new_size), range(size)):
        x = abs((place + 0.5 - scale * (out + 0.5)) / widening)
        if x < 1:
            weights[out, place] = 1.5 * x**3 - 2.5 * x**2 + 1
        elif x < 2:
            weights[out, place] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return weights / weights.sum(1, keepdims=True)


def resize_slowly(image: np.ndarray, size: int) -> np.ndarray:
    """Rows first, then columns, each rounded to uint8: (H, W, 3) -> (size, size, 3) int."""
    rows = np.einsum('ow,hwc->hoc', weigh_slowly(image.shape[1], size), image.astype(float))
    rows = np.clip(np.rint(rows), 0, 255)
    both = np.einsum('oh,hwc->owc', weigh_slowly(image.shape[0], size), rows)
    return np.clip(np.rint(both), 0, 255).astype(int)


@pytest.mark.parametrize(
    'shape',
    [(120, 160), (40, 400), (400, 40), (20, 24), (375, 500), (1, 1), (3, 2), (1, 90), (64, 64)],
)
def test_crops_equal_torchvisions_bit_for_bit(shape):
    image = make_image(*shape)
    for seed in range(5):
        torch.manual_seed(seed)
        crops = our_crops(image, num_local=3)
        torch.manual_seed(seed)
        # Another memory layout, on purpose: torchvision's usual (C, H, W) one.
        source = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        expected = torchvision_crops(source, num_local=3)
        for ours, theirs in zip(crops, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize('shape', [(48, 48), (100, 50), (30, 50), (40, 120), (200, 112)])
def test_resize_equals_a_slow_one_within_one_step(shape):
    image = make_image(*shape)
    whole = MultiCrop(64, (1.0, 1.0), ratio=(shape[1] / shape[0],) * 2)
    view = whole.transform({'img': image})['view_1'].permute(1, 2, 0).numpy()
    # The fast path filters in fixed point.
    assert np.abs(view - resize_slowly(image, 64)).max() <= 1


def test_crops_equal_pillows_within_one_step():
    image = make_image()
    # Boxes at least as wide as high: Pillow filters the columns of tall ones first, and noise
    # that overshoots is then clipped at other places (7 steps were seen).
    for seed in range(5):
        torch.manual_seed(seed)
        crops = our_crops(image, num_local=2, ratio=(1.0, 4 / 3))
        torch.manual_seed(seed)
        expected = torchvision_crops(Image.fromarray(image), num_local=2, ratio=(1.0, 4 / 3))
        for ours, theirs in zip(crops, expected, strict=True):
            theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
            assert (ours.int() - theirs.int()).abs().max() <= 1


def test_shrinking_does_not_alias():
    # Stripes finer than the new grid have no place in it: only their grey mean is right.
    stripes = np.tile(np.array([0, 0, 255], dtype=np.uint8), (192, 64))
    image = np.repeat(stripes[:, :, None], 3, axis=2)
    view = MultiCrop(48, (1.0, 1.0), ratio=(1.0, 1.0)).transform({'img': image})['view_1']
    aliased = cv2.resize(image, (48, 48), interpolation=cv2.INTER_CUBIC)
    inner = slice(4, -4)  # off the border, where the filter is cut
    assert (view[:, :, inner].int() - 85).abs().max() <= 3
    assert np.abs(aliased[:, inner].astype(int) - 85).max() > 50  # the image does tell


def test_views_keep_the_channel_order_and_differ():
    image = np.zeros((50, 60, 3), dtype=np.uint8)
    image[..., 0], image[..., 2] = 200, 100
    crops = our_crops(image, num_local=1)
    for crop in crops:
        assert crop.flatten(1).unique(dim=1).flatten().tolist() == [200, 0, 100]
    torch.manual_seed(0)
    view_1, view_2, first, second = our_crops(make_image(), num_local=2)
    assert not torch.equal(view_1, view_2)
    assert not torch.equal(first, second)


def test_non_contiguous_images_are_taken():
    image = make_image()
    torch.manual_seed(0)
    expected = our_crops(image[:, ::-1].copy())
    torch.manual_seed(0)
    assert torch.equal(our_crops(image[:, ::-1])[0], expected[0])


@pytest.mark.parametrize(
    ('img', 'message'),
    [
        (np.zeros((8, 8), np.uint8), r'shape \(H, W, C\), got uint8 of shape \(8, 8\)'),
        (np.zeros((8, 8, 3)), 'needs a uint8 or float32 image .*, got float64'),
        (Image.new('RGB', (8, 8)), 'got a Image from b.png'),
    ],
    ids=['grey', 'double', 'pillow'],
)
def test_wrong_images_are_refused(img, message):
    with pytest.raises(ValueError, match=message):
        MultiCrop().transform({'img': img, 'img_path': 'b.png'})


@pytest.mark.parametrize(
    'settings',
    [
        dict(global_size=0),
        dict(global_size=(224, 0)),
        dict(global_size=(224, 224, 3)),
        dict(local_size=-1),
        dict(global_scale=(0.0, 1.0)),
        dict(global_scale=(0.5, 1.2)),
        dict(local_scale=(0.4, 0.1)),
        dict(num_local=-1),
        dict(ratio=(2.0, 1.0)),
        dict(ratio=(0.0, 1.0)),
    ],
    ids=repr,
)
def test_wrong_arguments_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MultiCrop(**settings)
