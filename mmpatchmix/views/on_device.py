"""Augment a batch on an accelerator: few operations on many images, none that waits for it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.views import colours, fused_colours
from mmpatchmix.views.plan import Plan, choose_work_dtype, send


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise a batch.

    The plan is on the host, so only the images that an operation applies to are processed,
    and the device is never asked for a value. Where a compiler is there, all that happens to
    single pixels is one kernel, see :mod:`~mmpatchmix.views.fused_colours`.

    Args:
        images: (N, C, H, W) uint8, or float32 from 0 to 255, of any strides. Not modified.
        plan: What to do to each image; without colours where C is not 3.
        mean: (C, 1, 1), in RGB order, on the scale 0-255.
        std: (C, 1, 1), likewise.
        to_rgb: Whether the channels come in BGR order.

    Returns:
        Tensor: (N, C, H, W), three channels in RGB order, normalised; float32, under autocast of
        its type.
    """
    out = torch.empty(images.shape, dtype=choose_dtype(images), device=images.device)
    # bfloat16 has 8 bits for 256 grey levels, and hue is a quotient of differences.
    with torch.autocast(images.device.type, enabled=False):
        images = _take(images, plan, to_rgb)
        work = fused_colours.try_apply(images, plan)
        if work is None:
            work = images.to(choose_work_dtype(images))
            colours.jitter(work, plan)
            _change(work, plan.grey, lambda some: colours.find_grey(some).expand_as(some))
        _blur(work, plan)
        start = plan.solarize_from
        _change(work, plan.solarize, lambda some: torch.where(some >= start, 255 - some, some))
        return torch.addcmul(-mean / std, work, 1 / std, out=out)


def choose_dtype(images: Tensor) -> torch.dtype:
    """Return the type in which autocast would have the views: the first layer casts to it."""
    kind = images.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else torch.float32


def _take(images: Tensor, plan: Plan, to_rgb: bool) -> Tensor:
    """Copy the batch: contiguous, RGB, mirrored where the plan says so."""
    num, channels, height, width = images.shape
    image, channel, row, column = (
        torch.arange(size, device=images.device) for size in (num, channels, height, width)
    )
    if to_rgb:
        channel = channel.flip(0)
    # Counted from the other end where an image is mirrored. (N, 1, 1, W)
    column = (column - send((width - 1) * plan.flip.view(-1, 1, 1, 1), images)).abs_()
    return images[image.view(-1, 1, 1, 1), channel.view(-1, 1, 1), row.view(-1, 1), column]


def _change(images: Tensor, coins: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """Apply an operation in place to the images whose coin, (N,) bool, says so."""
    rows = coins.nonzero()[:, 0]  # (K,), on the host
    if len(rows):
        place = send(rows, images)
        images.index_copy_(0, place, operation(images.index_select(0, place)))


def _blur(images: Tensor, plan: Plan) -> None:
    """Blur each image by its own Gaussian in place, first along the rows, then the columns."""
    rows = plan.blur.nonzero()[:, 0]  # (K,)
    if len(rows) == 0:
        return
    channels, height, width = images.shape[1:]
    radius = plan.blur_side // 2
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offsets / plan.sigma[rows, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    kernels = send(kernels.to(images.dtype), images)[:, None]  # (K * C, 1, side)
    place = send(rows, images)
    # One pass takes the images and reflects them beyond their borders.
    y, x = (send(_reflect(size, radius), images) for size in (height, width))
    channel = torch.arange(channels, device=images.device)
    padded = images[place.view(-1, 1, 1, 1), channel.view(-1, 1, 1), y.view(-1, 1), x]
    planes = padded.view(1, -1, *padded.shape[2:])  # (1, K * C, H + 2 * radius, W + 2 * radius)
    planes = F.conv2d(planes, kernels[:, :, None], groups=len(kernels))
    planes = F.conv2d(planes, kernels[..., None], groups=len(kernels))
    images.index_copy_(0, place, planes.view(-1, channels, height, width))


def _reflect(size: int, radius: int) -> Tensor:
    """Return the places, 0 to size - 1, that -radius to size + radius - 1 are mirrored to."""
    places = torch.arange(-radius, size + radius).abs()
    return (size - 1) - ((size - 1) - places).abs()
