"""Boxes of random crops: drawn, and moved to an image decoded at a reduced scale."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

# Tries before torchvision gives up on a box that fits the image.
NUM_TRIES = 10


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draw the box of a random resized crop.

    The law is Inception's (arXiv 1409.4842, section 6): a uniform share of the area and a
    log-uniform aspect ratio, at a uniform place. Boxes and random numbers are those of
    torchvision's ``RandomResizedCrop.get_params``, which spends most of its time on
    tensors that it makes anew for every box.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height.
    """
    low, high = _log_ratio(ratio)
    number = torch.empty(1)
    for _ in range(NUM_TRIES):
        area = height * width * number.uniform_(*scale).item()
        aspect = number.uniform_(low, high).exp_().item()
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = torch.randint(height - box_height + 1, (1,)).item()
            left = torch.randint(width - box_width + 1, (1,)).item()
            return Box(top, left, box_height, box_width)
    return _centre_box(height, width, ratio)


@cache
def _log_ratio(ratio: tuple[float, float]) -> tuple[float, float]:
    # Rounded as torchvision does, or boxes would differ now and then.
    return tuple(torch.tensor(ratio).log().tolist())


def _centre_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Return the largest box in the middle whose width / height lies in the range."""
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def choose_reduction(boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> int:
    """Return the largest of 8, 4, 2 and 1 that leaves every box as large as its crop.

    Args:
        boxes: In pixels of the whole image.
        sizes: Height and width that each box is resized to.
    """
    room = min(
        min(box.height // height, box.width // width)
        for box, (height, width) in zip(boxes, sizes, strict=True)
    )
    return next((reduction for reduction in (8, 4, 2) if reduction <= room), 1)


def reduce_box(box: Box, reduction: int) -> Box:
    """Move a box to an image that was decoded at ``1 / reduction`` of its size.

    Edges go to the nearest pixel there, halves upwards. So a box of at least ``reduction *
    s`` pixels keeps at least ``s``, and one inside an image of ``H`` pixels stays inside
    the ``ceil(H / reduction)`` that libjpeg makes of it.
    """
    top, left, bottom, right = (
        (2 * edge + reduction) // (2 * reduction)
        for edge in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return Box(top, left, bottom - top, right - left)
