"""Augment a batch on an accelerator: few operations on many images, none that waits for it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.views.plan import CONTRAST, HUE, LUMA, SATURATION, Plan


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise a batch.

    The plan is on the host, so only the images that an operation applies to are processed,
    and the device is never asked for a value.

    Args:
        images: (N, C, H, W) uint8, or float32 from 0 to 255, of any strides. Not modified.
        plan: What to do to each image; without colours where C is not 3.
        mean: (C, 1, 1), in RGB order, on the scale 0-255.
        std: (C, 1, 1), likewise.
        to_rgb: Whether the channels come in BGR order.

    Returns:
        Tensor: (N, C, H, W) float32, three channels in RGB order, normalised.
    """
    # What only moves values moves bytes; the rest needs float32: half precision has 8 bits for
    # 256 grey levels, and hue is a quotient of differences.
    if to_rgb:
        images = images.flip(1)
    if plan.flip.any():
        flip = _send(plan.flip.view(-1, 1, 1, 1), images)
        images = torch.where(flip, images.flip(3), images)
    # A copy, of float32 too: the rest changes it in place. From 0 to 255.
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    with torch.autocast(images.device.type, enabled=False):
        _jitter(images, plan)
        images = _change(images, plan.grey, lambda some, rows: _find_grey(some).expand_as(some))
        images = _change(images, plan.blur, lambda some, rows: _blur(some, plan, rows))
        images = _change(
            images,
            plan.solarize,
            lambda some, rows: torch.where(some >= plan.solarize_from, 255 - some, some),
        )
        return torch.addcmul(-mean / std, images, 1 / std, out=images)


def _send(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device, non_blocking=True)


def _change(images: Tensor, coins: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply ``operation(images, rows)`` to the images whose coin, (N,) bool, says so."""
    rows = coins.nonzero()[:, 0]  # (K,), on the host
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, rows).contiguous()
    place = _send(rows, images)
    return images.index_copy_(0, place, operation(images.index_select(0, place), rows))


def _jitter(images: Tensor, plan: Plan) -> None:
    """Jitter the colours in place, each image in its own order.

    Hue takes more than all else, so it happens once for all images, with up to three of the
    others before it and the rest after it. Images are sorted by how many come before; so those
    that take part in a pass are neighbours.
    """
    rows = plan.jitter.nonzero()[:, 0]  # (K,)
    if len(rows) == 0:
        return
    place_of_hue = (plan.order[rows] == HUE).nonzero()[:, 1]  # (K,), 0 to 3
    by_place = place_of_hue.argsort(descending=True)
    rows, place_of_hue = rows[by_place], place_of_hue[by_place]
    order, factors = plan.order[rows], plan.factors[rows]  # (K, 4) each
    shares = 1 - factors.gather(1, order)
    blends = torch.stack([shares, order == CONTRAST, order == SATURATION])  # (3, K, 4)
    place, blends = _send(rows, images), _send(blends, images)
    some = images.index_select(0, place)  # (K, C, H, W)
    for step in range(3):
        num = int((place_of_hue > step).sum())
        _blend(some[:num], *blends[:, :num, step])
    if factors[:, HUE].any():
        _turn_hue(some, factors[:, HUE])
    for step in range(1, 4):
        first = int((place_of_hue >= step).sum())
        _blend(some[first:], *blends[:, first:, step])
    images.index_copy_(0, place, some)


def _blend(images: Tensor, share: Tensor, is_contrast: Tensor, is_saturation: Tensor) -> None:
    """Change brightness, contrast or saturation in place.

    Each moves an image away from, or towards, another one: black, its mean grey, its greys.
    Channels that are no colours have a mean each, and no greys.

    Args:
        images: (K, C, H, W), 0 to 255.
        share: (K,), of the other image: 1 less the factor.
        is_contrast: (K,), 1 where it is the mean grey, 0 elsewhere.
        is_saturation: (K,), 1 where it is the greys, 0 elsewhere.
    """
    if len(images) == 0:
        return
    share, is_contrast, is_saturation = (
        each.view(-1, 1, 1, 1) for each in (share, is_contrast, is_saturation)
    )
    grey = _find_grey(images) if images.shape[1] == 3 else images
    mean = grey.mean((2, 3), keepdim=True)  # (K, 1 or C, 1, 1)
    other = torch.addcmul(is_contrast * mean, is_saturation, grey)  # (K, 1 or C, H, W)
    images.lerp_(other, share).clamp_(0, 255)


def _find_grey(images: Tensor) -> Tensor:
    """Return the greys, (K, 1, H, W), of (K, 3, H, W) images."""
    red, green, blue = images.split(1, dim=1)
    # Weighed by LUMA, in two passes; three equal values give just that value.
    return red.lerp(green, LUMA[1] / (LUMA[0] + LUMA[1])).lerp_(blue, LUMA[2])


def _turn_hue(images: Tensor, turns: Tensor) -> None:
    """Turn the colours in place; HSV (hue, saturation, value) stays unwritten.

    Hue is a place on a circle of six steps: red at 0, green at 2, blue at 4. Going round it, a
    channel stays at the highest value of the pixel for two steps, falls to the lowest within
    one, stays there for two, and rises again.

    Source: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative.

    Args:
        images: (K, 3, H, W), 0 to 255.
        turns: (K,), shares of the circle.
    """
    red, green, blue = images.split(1, dim=1)
    lowest, highest = torch.aminmax(images, dim=1, keepdim=True)
    spread = highest - lowest  # (K, 1, H, W)
    # Steps from red, 0 to 3; the sign says whether towards green or towards blue. Where all are
    # equal the quotient is 0 / tiny, and any hue will do.
    steps = (green + blue - red - highest) / spread.clamp(min=1e-30) + 2
    hue = torch.copysign(steps, green - blue)
    # From two steps before a channel's own colour: at 0 it is lowest, at 2 highest.
    ahead = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1) + 6 * turns.view(-1, 1, 1, 1)
    distance = (hue + _send(ahead, images)).remainder_(6).sub_(2).abs_().clamp_(1, 2)
    torch.addcmul(lowest - spread, spread, distance, out=images)


def _blur(images: Tensor, plan: Plan, rows: Tensor) -> Tensor:
    """Blur each image by its own Gaussian, first along the rows, then along the columns."""
    num, channels, height, width = images.shape
    radius = plan.blur_side // 2
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offsets / plan.sigma[rows, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    kernels = _send(kernels, images)[:, None]  # (K * C, 1, side)
    padded = F.pad(images, [radius] * 4, mode='reflect')
    planes = padded.view(1, num * channels, height + 2 * radius, width + 2 * radius)
    planes = F.conv2d(planes, kernels[:, :, None], groups=num * channels)
    planes = F.conv2d(planes, kernels[..., None], groups=num * channels)
    return planes.view(images.shape)
