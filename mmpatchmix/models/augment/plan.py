"""What is to happen to each image of a batch: all its random numbers, as plain tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The operations of colour jitter, as numbered in `Plan.order` and in `Plan.factors`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# Weights of red, green and blue in a grey (ITU-R BT.601, as OpenCV has them).
LUMA = (0.299, 0.587, 0.114)


class Plan(NamedTuple):
    """One view's operations on N images, in the order in which they happen.

    All tensors are on the CPU, so the host knows what to do without asking a device.

    Attributes:
        flip: (N,) bool, which images are mirrored left to right. Nothing below depends on
            sides, so it may as well happen last.
        jitter: (N,) bool, which images are jittered.
        order: (N, 4) int64, the order of an image's four jitter operations.
        factors: (N, 4) float32, factors of brightness, contrast and saturation, and the
            turn of the hue as a share of the circle. 1, 1, 1 and 0 change nothing.
        grey: (N,) bool, which images lose their colour.
        blur: (N,) bool, which images are blurred.
        sigma: (N,) float32, standard deviations of the blurs in pixels.
        blur_side: Side of the blur's kernel in pixels, odd.
        solarize: (N,) bool, which images are solarized.
        solarize_from: Values from here on, of 0 to 255, are inverted.
    """

    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    sigma: Tensor
    blur_side: int
    solarize: Tensor
    solarize_from: float


def without_colours(plan: Plan) -> Plan:
    """Return a plan without what is made for RGB: saturation, hue, greyscale and solarize."""
    factors = plan.factors.clone()
    factors[:, SATURATION], factors[:, HUE] = 1, 0
    none = torch.zeros_like(plan.grey)
    return plan._replace(factors=factors, grey=none, solarize=none)


def join(plans: Sequence[Plan]) -> Plan:
    """Return one plan for the images of all, which blur and solarize alike."""
    return Plan(
        *(
            torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
            for parts in zip(*plans, strict=True)
        )
    )


def send(values: Tensor, images: Tensor) -> Tensor:
    """Copy what was drawn to the images' device; pinned, for else CUDA may wait."""
    if images.device.type == 'cuda' and values.device.type == 'cpu':
        values = values.pin_memory()
    return values.to(images.device, non_blocking=True)


def choose_work_dtype(images: Tensor) -> torch.dtype:
    """Return the type in which images are kept between operations.

    Half precision holds 0 to 255 to an eighth of a level, and is half the traffic: enough for
    bytes, which transforms of images round to whole levels. CPU cores are slow in it.
    """
    is_half = images.dtype == torch.uint8 and images.device.type != 'cpu'
    return torch.float16 if is_half else torch.float32
