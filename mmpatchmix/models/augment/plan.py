"""The random numbers of a batch: which operations each image gets, as plain tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

# The operations of colour jitter, as numbered in `Plan.order` and in `Plan.factors`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# Weights of red, green and blue in a grey (ITU-R BT.601, as OpenCV has them).
LUMA = (0.299, 0.587, 0.114)


class Plan(NamedTuple):
    """Operations on N images, in the order in which they are applied, on the CPU."""

    flip: Tensor  # (N,) bool, mirrored left to right; commutes with all others
    jitter: Tensor  # (N,) bool
    order: Tensor  # (N, 4) int64, the order of an image's four jitter operations
    # (N, 4) float32, factors of brightness, contrast and saturation, and the turn of the hue as a
    # share of the circle. 1, 1, 1 and 0 change nothing.
    factors: Tensor
    grey: Tensor  # (N,) bool, turned to grey
    blur: Tensor  # (N,) bool
    sigma: Tensor  # (N,) float32, standard deviations of the blurs in pixels
    blur_side: int  # of the blur's kernel in pixels, odd
    solarize: Tensor  # (N,) bool
    solarize_from: float  # values of at least this, of 0 to 255, are inverted


def without_colours(plan: Plan) -> Plan:
    """Return a plan without the operations on RGB: saturation, hue, greyscale and solarize."""
    factors = plan.factors.clone()
    factors[:, SATURATION], factors[:, HUE] = 1, 0
    none = torch.zeros_like(plan.grey)
    return plan._replace(factors=factors, grey=none, solarize=none)
