"""Augment a batch on the CPU: image by image on OpenCV, in as many threads as torch has.

One image at a time stays in the cache, and eight bits per value are a quarter of the traffic.
Between two operations values are rounded to whole grey levels, as they are in torchvision's
transforms of images. All images are (H, W, 3) uint8, RGB, contiguous, and changed in place.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from mmpatchmix.models.augment.plan import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, Plan

LEVELS = np.arange(256, dtype=np.float32)


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise a batch.

    Args:
        images: (N, 3, H, W) uint8; quickest with the channels last in memory. Not modified.
        plan: What to do to each image.
        mean: (3, 1, 1), in RGB order, on the scale 0-255.
        std: (3, 1, 1), likewise.
        to_rgb: Whether the channels come in BGR order.

    Returns:
        Tensor: (N, 3, H, W) float32, RGB, normalised.
    """
    sources = images.permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    out = torch.empty(images.shape)
    planes = out.numpy()
    normalised = ((torch.arange(256) - mean[:, 0]) / std[:, 0]).numpy()  # (3, 256)
    is_kept = plan.solarize_from > LEVELS
    solarized = np.where(is_kept, LEVELS, 255 - LEVELS).astype(np.uint8)  # (256,)

    lists = Plan(*(part.tolist() if isinstance(part, Tensor) else part for part in plan))

    def augment_some(numbers: range) -> None:
        for number in numbers:
            img = np.ascontiguousarray(sources[number])
            img = cv2.cvtColor(img, cv2.COLOR_BGR2RGB) if to_rgb else img.copy()
            _augment_image(img, lists, number, solarized)
            for channel, plane in enumerate(planes[number]):
                cv2.LUT(cv2.extractChannel(img, channel), normalised[channel], dst=plane)

    num_threads = torch.get_num_threads()
    shares = [range(first, len(images), num_threads) for first in range(num_threads)]
    if num_threads == 1:
        augment_some(shares[0])
    else:  # OpenCV lets other threads run, and nothing is drawn here
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(augment_some, shares))
    return out


def _augment_image(img: np.ndarray, plan: Plan, number: int, solarized: np.ndarray) -> None:
    """Do to one image what row ``number`` of the plan, as lists, says."""
    if plan.flip[number]:
        cv2.flip(img, 1, dst=img)
    if plan.jitter[number]:
        for operation in plan.order[number]:
            JITTER[operation](img, plan.factors[number][operation])
    if plan.grey[number]:
        cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=img)
    if plan.blur[number]:
        blur(img, plan.sigma[number], plan.blur_side)
    if plan.solarize[number]:
        cv2.LUT(img, solarized, dst=img)


def adjust_brightness(img: np.ndarray, factor: float) -> None:
    """Multiply by the factor."""
    _look_up(img, LEVELS * factor)


def adjust_contrast(img: np.ndarray, factor: float) -> None:
    """Move away from (factor > 1) or towards the mean grey."""
    mean = float(np.dot(cv2.mean(img)[:3], LUMA))
    _look_up(img, LEVELS * factor + (1 - factor) * mean)


def adjust_saturation(img: np.ndarray, factor: float) -> None:
    """Move away from (factor > 1) or towards each pixel's grey."""
    weights = factor * np.eye(3) + (1 - factor) * np.array(LUMA)
    cv2.transform(img, weights.astype(np.float32), dst=img)


def adjust_hue(img: np.ndarray, turn: float) -> None:
    """Turn the colours by a share of the circle."""
    if turn == 0:
        return
    # Float, because eight bits hold 180 or 256 hues. Its range, 0 to 255, cancels out.
    hsv = cv2.cvtColor(img.astype(np.float32), cv2.COLOR_RGB2HSV)  # (H, W, 3), hue in degrees
    hue = hsv[..., 0]
    hue += 360 * (turn % 1)
    hue[hue >= 360] -= 360
    cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dst=img)


JITTER = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def blur(img: np.ndarray, sigma: float, side: int) -> None:
    """Blur by a Gaussian of ``sigma`` pixels, in a kernel of ``side`` pixels."""
    # What lies beyond four sigma weighs 6e-5 in all, a sixtieth of a grey level.
    side = min(side, 2 * math.ceil(4 * sigma) + 1)
    # Exact, unlike cv2.GaussianBlur of eight bits, and two to four times as fast.
    kernel = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
    cv2.sepFilter2D(img, -1, kernel, kernel, dst=img, borderType=cv2.BORDER_REFLECT_101)


def _look_up(img: np.ndarray, table: np.ndarray) -> None:
    cv2.LUT(img, np.clip(np.rint(table), 0, 255).astype(np.uint8), dst=img)
