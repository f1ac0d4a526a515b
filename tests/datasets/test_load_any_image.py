"""Pixel values followed from the file to the network, and what does not fit refused by name."""

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate

from mmpatchmix.datasets import LoadAnyImage, MultiCrop
from mmpatchmix.datasets.load_any_image import UnfitImageError, parse_value_range
from mmpatchmix.datasets.pack_views import PackViews
from mmpatchmix.models import PatchMixDataPreprocessor
from tests.datasets.any_images import as_npy, as_png, as_tiff, make_levels, make_noise

FIVE = make_noise((40, 50, 5), 'uint16', 4096)


def load(tmp_path, content: bytes, name: str = 'a.tif', **settings) -> np.ndarray:
    path = tmp_path / name
    path.write_bytes(content)
    results = LoadAnyImage(**settings).transform({'img_path': str(path)})
    img = results['img']
    assert img.dtype == np.float32
    assert results['img_shape'] == results['ori_shape'] == img.shape[:2]
    return img


@pytest.mark.parametrize('write', [as_png, as_tiff, as_npy])
def test_12_bits_keep_their_levels_up_to_the_network(tmp_path, write):
    levels = make_levels(4081)
    img = load(tmp_path, write(levels), channels=1, value_range=(0, 4095))
    np.testing.assert_allclose(img[:, :, 0], levels * (255 / 4095), rtol=1e-6)
    # The whole image as its crop: the resize then changes nothing.
    crops = MultiCrop(global_size=64, global_scale=(1, 1), ratio=(1, 1)).transform({'img': img})
    batch = default_collate([PackViews().transform(crops)] * 2)
    assert batch['inputs']['view_1'].shape == (2, 64, 64, 1)
    off = dict(color_jitter=None, grayscale_prob=0, blur_prob=0, flip_prob=0)
    augment = dict(view_1=dict(type='mmpatchmix.ViewAugment', **off))
    settings = dict(mean=[100.0], std=[50.0], to_rgb=False)
    preprocessor = PatchMixDataPreprocessor(**settings, augment=augment)
    inputs = preprocessor(batch, training=True)['inputs']
    for name in ('view_1', 'view_2'):  # augmented, and not
        seen = inputs[name][0, 0]
        assert len(seen.unique()) == 4081
        expected = torch.from_numpy((levels * (255 / 4095) - 100) / 50).float()
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-5)


def test_ends_of_each_kind_of_range(tmp_path):
    noise = make_noise((9, 9, 3))
    assert np.array_equal(load(tmp_path, as_png(noise), 'a.png'), noise)
    img = load(tmp_path, as_tiff(FIVE, photometric='minisblack', planarconfig='contig'), channels=5)
    np.testing.assert_allclose(img, FIVE * (255 / 65535), rtol=1e-6)
    signed = np.array([[-32768, 0, 32767]], np.int16)
    img = load(tmp_path, as_npy(signed), channels=1)
    np.testing.assert_allclose(img[0, :, 0], [0, 32768 / 65535 * 255, 255], rtol=1e-6)
    metres = np.array([[-400.0, 0.0, 8848.0]])
    img = load(tmp_path, as_npy(metres), channels=1, value_range='-400,8848')
    np.testing.assert_allclose(img[0, :, 0], [0, 400 / 9248 * 255, 255], rtol=1e-6)


def test_percentiles_are_those_of_each_channel(tmp_path):
    values = FIVE.astype(np.float64) * [1, 10, 100, 1e3, 1e6]
    img = load(tmp_path, as_npy(values), channels=5, value_range=('percentile', 1, 99))
    for channel in range(5):
        ordered = np.sort(values[:, :, channel].ravel())
        low, high = (
            np.interp(share * (len(ordered) - 1), np.arange(len(ordered)), ordered)
            for share in (0.01, 0.99)
        )
        expected = np.clip((values[:, :, channel] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(img[:, :, channel], expected, atol=1e-3)
    assert (img == 0).any() and (img == 255).any()


def test_images_that_do_not_fit_are_refused_by_name(tmp_path):
    for values, settings, reason in (
        (FIVE, dict(channels=3), '5 channels of 40 x 50 pixels, the config says channels=3'),
        (FIVE.transpose(2, 0, 1), dict(channels=5), '50 channels of 5 x 40 pixels'),
        (FIVE, dict(channels=5, value_range=(0, 1023)), r'values from \d+ to 409\d, the config'),
        (FIVE.astype('f4'), dict(channels=5), r'float32 values.*\(low, high\)'),
        (np.full((4, 4), np.nan), dict(channels=1, value_range=(0, 1)), 'NaN or infinite'),
        (np.zeros((4, 4)), dict(channels=1, value_range='percentile,1,99'), 'channel 0 are both 0'),
    ):
        with pytest.raises(UnfitImageError, match=rf'{reason}.*a\.tif'):
            load(tmp_path, as_npy(values), **settings)


@pytest.mark.parametrize('value', ['floats', (1, 1), (1, 2, 3), ('percentile', -1, 50), None])
def test_wrong_settings_are_refused(value):
    with pytest.raises((ValueError, TypeError)):
        parse_value_range(value)
    with pytest.raises(ValueError, match='channels must be at least 1'):
        LoadAnyImage(channels=0)
    assert parse_value_range('0,4095') == parse_value_range([0, 4095]) == ('given', 0.0, 4095.0)
    assert parse_value_range('percentile, 1, 99') == ('percentile', 1.0, 99.0)


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_float_crops_equal_those_of_bytes_but_for_rounding(channels):
    # Of so little contrast that no overshoot is cut between the two passes of bytes.
    img = 80 + make_noise((90, 120, channels), high=96)
    crop = MultiCrop(global_size=(32, 64), local_size=16, num_local=2)
    torch.manual_seed(0)
    floats = crop.transform({'img': img.astype(np.float32)})
    torch.manual_seed(0)
    whole = crop.transform({'img': img})
    assert floats['view_1'].shape == (channels, 32, 64)
    assert floats['local_views'].shape == (2, channels, 16, 16)
    for name in ('view_1', 'view_2', 'local_views'):
        assert whole[name].dtype == torch.uint8 and floats[name].dtype == torch.float32
        assert floats[name].min() >= 0 and floats[name].max() <= 255
        # Bytes round after each of two passes.
        assert (floats[name] - whole[name].float()).abs().max() <= 2
