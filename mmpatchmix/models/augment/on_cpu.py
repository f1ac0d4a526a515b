"""Augment a batch on the CPU: image by image with OpenCV, in torch's number of threads.

One image at a time stays in the cache, and eight bits per value are a quarter of the traffic.
Values are rounded to whole grey levels between two operations, as in torchvision's transforms of
images. All images are (H, W, 3) uint8, RGB, contiguous, and changed in place.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from mmpatchmix.models.augment.plan import LUMA, Plan

LEVELS = np.arange(256, dtype=np.float32)


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise (..., 3, H, W) uint8, fastest with the channels last in memory.

    Arguments and result are those of :func:`.on_device.augment`; the result is float32.
    """
    sources = images.movedim(-3, -1).flatten(0, -4).numpy()  # (N, H, W, 3)
    out = torch.empty(images.shape)
    planes = out.flatten(0, -4).numpy()  # (N, 3, H, W), the same memory
    normalised = ((torch.arange(256) - mean[:, 0]) / std[:, 0]).numpy()  # (3, 256)
    plan = Plan(*(part.tolist() if isinstance(part, Tensor) else part for part in plan))

    num_threads = torch.get_num_threads()

    def augment_share(first: int) -> None:
        for index in range(first, len(sources), num_threads):
            img = np.ascontiguousarray(sources[index])
            img = cv2.cvtColor(img, cv2.COLOR_BGR2RGB) if to_rgb else img.copy()
            _augment_image(img, plan, index)
            for channel, plane in enumerate(planes[index]):
                cv2.LUT(cv2.extractChannel(img, channel), normalised[channel], dst=plane)

    if num_threads == 1:  # a new thread would get its memory from the system
        augment_share(0)
        return out
    # OpenCV releases the GIL, and no random numbers are drawn here.
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(augment_share, range(num_threads)))
    return out


def _augment_image(img: np.ndarray, plan: Plan, index: int) -> None:
    """Apply row ``index`` of a plan of lists to an image."""
    if plan.flip[index]:
        cv2.flip(img, 1, dst=img)
    if plan.jitter[index]:
        for operation in plan.order[index]:
            JITTER[operation](img, plan.factors[index][operation])
    if plan.grey[index]:
        cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=img)
    if plan.blur[index]:
        blur(img, plan.sigma[index], plan.blur_side)
    if plan.solarize[index]:
        _look_up(img, np.where(plan.solarize_from > LEVELS, LEVELS, 255 - LEVELS))


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
    # In float, because 8-bit HSV has only 180 or 256 hues.
    hsv = cv2.cvtColor(img.astype(np.float32), cv2.COLOR_RGB2HSV)  # (H, W, 3), hue in degrees
    hue = hsv[..., 0]
    hue += 360 * (turn % 1)
    hue[hue >= 360] -= 360
    cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dst=img)


# In the order of the numbers in Plan.order.
JITTER = adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue


def blur(img: np.ndarray, sigma: float, side: int) -> None:
    """Blur by a Gaussian of ``sigma`` pixels, in a kernel of ``side`` pixels."""
    # The weights beyond four sigma sum to 6e-5, a sixtieth of a grey level.
    side = min(side, 2 * math.ceil(4 * sigma) + 1)
    # Exact, unlike cv2.GaussianBlur of eight bits, and two to four times as fast.
    kernel = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
    cv2.sepFilter2D(img, -1, kernel, kernel, dst=img, borderType=cv2.BORDER_REFLECT_101)


def _look_up(img: np.ndarray, table: np.ndarray) -> None:
    cv2.LUT(img, np.clip(np.rint(table), 0, 255).astype(np.uint8), dst=img)
