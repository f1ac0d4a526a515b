"""Photometric augmentation in the workers, crop by crop, on OpenCV."""

import inspect
import math

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from torch import Tensor

from mmpatchmix.registry import TRANSFORMS

# ITU-R BT.601, as OpenCV, kornia and torchvision weigh the colours of a grey.
LUMA = (0.299, 0.587, 0.114)
LEVELS = np.arange(256, dtype=np.float32)


@TRANSFORMS.register_module()
class AugmentViews(BaseTransform):
    """What ``PhotometricAugment`` does on the device, done to the crops of one image.

    For machines without an accelerator: one image at a time stays in the cache, and eight
    bits per value are a quarter of the traffic. Between two operations values are rounded to
    whole grey levels, as they are in torchvision's transforms of images. The order of the
    four jitter operations is drawn per crop. All random numbers come from torch's generator.

    **Required keys**: those of the given views, uint8 tensors of shape (3, H, W), or
    (L, 3, h, w) for ``local_views``. The crops are changed in place.

    Args:
        view_1 (dict | None): Arguments of ``mmpatchmix.PhotometricAugment``, with the same
            defaults. None leaves the view as it is.
        view_2 (dict | None): Likewise.
        local_views (dict | None): Likewise. Every crop has its own random numbers.
        channel_order (str): 'bgr', as OpenCV loads, or 'rgb'. The order is kept.

    Raises:
        ValueError: If an argument is unknown or out of its range.
    """

    def __init__(
        self,
        view_1: dict | None = None,
        view_2: dict | None = None,
        local_views: dict | None = None,
        channel_order: str = 'bgr',
    ) -> None:
        if channel_order not in ('bgr', 'rgb'):
            raise ValueError(
                f"AugmentViews: channel_order must be 'bgr' or 'rgb', got {channel_order!r}"
            )
        given = {'view_1': view_1, 'view_2': view_2, 'local_views': local_views}
        self.channel_order = channel_order
        self.augment = {
            view: CropAugment(channel_order, **_complete(view, settings))
            for view, settings in given.items()
            if settings is not None
        }

    def transform(self, results: dict) -> dict:
        """Augment the crops of one image; see the class."""
        for view, augment in self.augment.items():
            # Local views are left out where there are none, as on the device.
            crops = results.get(view, ())
            for crop in [crops] if view != 'local_views' else crops:  # (3, h, w) each
                _change(crop, augment)
        return results

    def __repr__(self) -> str:
        settings = ''.join(f'{view}={augment.settings}, ' for view, augment in self.augment.items())
        return f'AugmentViews({settings}channel_order={self.channel_order!r})'


class CropAugment:
    """Draws and applies the operations to one crop; arguments as in ``PhotometricAugment``."""

    def __init__(self, channel_order: str, **settings) -> None:
        self.settings = settings
        is_bgr = channel_order == 'bgr'
        self.luma = np.array(LUMA[::-1] if is_bgr else LUMA, np.float32)
        self.to_grey = cv2.COLOR_BGR2GRAY if is_bgr else cv2.COLOR_RGB2GRAY
        self.to_hsv = cv2.COLOR_BGR2HSV if is_bgr else cv2.COLOR_RGB2HSV
        self.from_hsv = cv2.COLOR_HSV2BGR if is_bgr else cv2.COLOR_HSV2RGB
        threshold = np.float32(settings['solarize_threshold'])
        inverted = np.where(LEVELS / np.float32(255) >= threshold, 255 - LEVELS, LEVELS)
        self.solarized = inverted.astype(np.uint8)  # (256,)

    def __call__(self, img: np.ndarray) -> None:
        """Augment an image in place.

        Args:
            img: (H, W, 3) uint8, contiguous.
        """
        own = self.settings
        # One draw for all coins; five uniform numbers more are cheaper than five calls.
        jitter, grey, blur, solarize, flip, *uniforms = torch.rand(10).tolist()
        if own['color_jitter'] is not None and jitter < own['color_jitter_prob']:
            self._jitter(img, uniforms[:4])
        if grey < (own['grayscale_prob'] or 0):
            cv2.cvtColor(cv2.cvtColor(img, self.to_grey), cv2.COLOR_GRAY2BGR, dst=img)
        if own['blur_sigma'] is not None and blur < (own['blur_prob'] or 0):
            smallest, largest = own['blur_sigma']
            self.blur(img, smallest + (largest - smallest) * uniforms[4])
        if solarize < (own['solarize_prob'] or 0):
            cv2.LUT(img, self.solarized, dst=img)
        if flip < (own['flip_prob'] or 0):
            cv2.flip(img, 1, dst=img)

    def _jitter(self, img: np.ndarray, uniforms: list[float]) -> None:
        operations = (self.brightness, self.contrast, self.saturation, self.hue)
        for number in torch.randperm(4).tolist():
            strength = self.settings['color_jitter'][number]
            if strength == 0:
                continue
            low, high = (
                (-strength, strength) if number == 3 else (max(0, 1 - strength), 1 + strength)
            )
            operations[number](img, low + (high - low) * uniforms[number])

    def brightness(self, img: np.ndarray, factor: float) -> None:
        """Multiply by the factor, in place."""
        _look_up(img, LEVELS * factor)

    def contrast(self, img: np.ndarray, factor: float) -> None:
        """Move away from (factor > 1) or towards the mean grey, in place."""
        mean = float(np.dot(cv2.mean(img)[:3], self.luma))
        _look_up(img, LEVELS * factor + (1 - factor) * mean)

    def saturation(self, img: np.ndarray, factor: float) -> None:
        """Move away from (factor > 1) or towards each pixel's grey, in place."""
        weights = factor * np.eye(3, dtype=np.float32) + (1 - factor) * self.luma
        cv2.transform(img, weights, dst=img)

    def hue(self, img: np.ndarray, shift: float) -> None:
        """Turn the colours by a share of the circle, in place."""
        # Float, because eight bits hold 180 or 256 hues. Its range, 0 to 255, cancels out.
        hsv = cv2.cvtColor(img.astype(np.float32), self.to_hsv)  # (H, W, 3), hue in degrees
        hue = hsv[..., 0]
        hue += 360 * (shift % 1)
        hue[hue >= 360] -= 360
        cv2.convertScaleAbs(cv2.cvtColor(hsv, self.from_hsv), dst=img)

    def blur(self, img: np.ndarray, sigma: float) -> None:
        """Blur by a Gaussian of ``sigma`` pixels, in place."""
        # Here, because models import the layout of views from this package.
        from mmpatchmix.views.on_device import derive_blur_kernel

        side = self.settings['blur_kernel'] or derive_blur_kernel(min(img.shape[:2]))
        # What lies beyond four sigma weighs 6e-5 in all, a sixtieth of a grey level.
        side = min(side, 2 * math.ceil(4 * sigma) + 1)
        # Exact, unlike cv2.GaussianBlur of eight bits, and two to four times as fast.
        kernel = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
        cv2.sepFilter2D(img, -1, kernel, kernel, dst=img, borderType=cv2.BORDER_REFLECT_101)


def _look_up(img: np.ndarray, table: np.ndarray) -> None:
    cv2.LUT(img, np.clip(np.rint(table), 0, 255).astype(np.uint8), dst=img)


def _change(crop: Tensor, augment: CropAugment) -> None:
    img = crop.permute(1, 2, 0).numpy()  # (H, W, 3), of the crop's memory
    if img.flags.c_contiguous:
        augment(img)
    else:
        copied = np.ascontiguousarray(img)
        augment(copied)
        img[:] = copied


def _complete(view: str, settings: dict) -> dict:
    """The settings with the defaults of ``PhotometricAugment``, checked as it checks them."""
    from mmpatchmix.views.on_device import PhotometricAugment  # see CropAugment.blur

    signature = inspect.signature(PhotometricAugment)
    if unknown := set(settings) - set(signature.parameters):
        raise ValueError(
            f'AugmentViews: {view} has no {sorted(unknown)}; its arguments are those of '
            f'PhotometricAugment: {list(signature.parameters)}'
        )
    PhotometricAugment(**settings)
    return {name: p.default for name, p in signature.parameters.items()} | settings
