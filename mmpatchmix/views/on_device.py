"""Augment a batch on an accelerator: few operations on many images, none that waits for it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.views import colours, fused_colours
from mmpatchmix.views.plan import Plan, choose_work_dtype, send

SLOW_TO_INDEX = ('cpu',)  # kinds of devices that copy more quickly than they gather


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise a batch; see :func:`augment_views`, of which this has one."""
    return augment_views([images], plan, mean, std, to_rgb)


def augment_views(
    views: Sequence[Tensor], plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False
) -> Tensor:
    """Augment and normalise views of one size together.

    The plan is on the host, so only the images that an operation applies to are processed,
    and the device is never asked for a value. Where a compiler is there, colours are two
    kernels, see :mod:`~mmpatchmix.views.fused_colours`.

    Args:
        views: ``(N, C, H, W)`` or ``(L, N, C, H, W)`` each, uint8, or float32 from 0 to 255, of any
            strides. Not modified.
        plan: What to do to each image, view by view; without colours where C is not 3.
        mean: (C, 1, 1), in RGB order, on the scale 0-255.
        std: (C, 1, 1), likewise.
        to_rgb: Whether the channels come in BGR order.

    Returns:
        Tensor: (all images, C, H, W), three channels in RGB order, normalised; float32, under
        autocast of its type.
    """
    # bfloat16 has 8 bits for 256 grey levels, and hue is a quotient of differences.
    dtype, work_dtype = choose_dtype(views[0]), choose_work_dtype(views[0])
    with torch.autocast(views[0].device.type, enabled=False):
        sizes = [view.shape[:-3].numel() for view in views]
        taken = [
            _take(view, flip, to_rgb)
            for view, flip in zip(views, plan.flip.split(sizes), strict=True)
        ]
        work = fused_colours.try_apply(taken, plan)
        if work is None:
            work = taken[0].new_empty((sum(sizes), *taken[0].shape[1:]), dtype=work_dtype)
            for part, images in zip(work.split(sizes), taken, strict=True):
                part.copy_(images)
            colours.jitter(work, plan)
            _change(work, plan.grey, lambda some: colours.find_grey(some).expand_as(some))
        _blur(work, plan)
        start = plan.solarize_from
        _change(work, plan.solarize, lambda some: torch.where(some >= start, 255 - some, some))
        out = torch.empty_like(work, dtype=dtype)
        return torch.addcmul(-mean / std, work, 1 / std, out=out)


def choose_dtype(images: Tensor) -> torch.dtype:
    """Return the type in which autocast would have the views: the first layer casts to it."""
    kind = images.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else torch.float32


def _take(view: Tensor, flip: Tensor, to_rgb: bool) -> Tensor:
    """Copy a view as one batch: contiguous, RGB, mirrored where ``flip`` says so."""
    *leading, channels, height, width = view.shape
    if view.device.type in SLOW_TO_INDEX:
        images = view.flatten(0, -4)
        images = images.flip(1) if to_rgb else images
        return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images).contiguous()
    # One pass copies, whatever the order in memory.
    channel = torch.arange(channels, device=view.device)
    if to_rgb:
        channel = channel.flip(0)
    place = torch.arange(max(height, width), device=view.device)
    # Counted from the other end where an image is mirrored. (images, 1, 1, W)
    column = (place[:width] - send((width - 1) * flip.view(-1, 1, 1, 1), view)).abs_()
    image = torch.cartesian_prod(*(torch.arange(size) for size in leading))
    image = send(image.view(len(flip), len(leading)), view)[..., None, None, None].unbind(1)
    return view[(*image, channel.view(-1, 1, 1), place[:height, None], column)]


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
    padded = _take_padded(images, place, radius)
    planes = padded.view(1, -1, *padded.shape[2:])  # (1, K * C, H + 2 * radius, W + 2 * radius)
    planes = F.conv2d(planes, kernels[:, :, None], groups=len(kernels))
    planes = F.conv2d(planes, kernels[..., None], groups=len(kernels))
    images.index_copy_(0, place, planes.view(-1, channels, height, width))


def _take_padded(images: Tensor, place: Tensor, radius: int) -> Tensor:
    """Copy some of the images, reflected beyond their borders."""
    if images.device.type in SLOW_TO_INDEX:
        return F.pad(images.index_select(0, place), [radius] * 4, mode='reflect')
    channels, height, width = images.shape[1:]
    y = send(_reflect(height, radius), images)
    x = y if width == height else send(_reflect(width, radius), images)
    channel = torch.arange(channels, device=images.device)
    return images[place.view(-1, 1, 1, 1), channel.view(-1, 1, 1), y.view(-1, 1), x]


def _reflect(size: int, radius: int) -> Tensor:
    """Return the places, 0 to size - 1, that -radius to size + radius - 1 are mirrored to."""
    places = torch.arange(-radius, size + radius).abs()
    return (size - 1) - ((size - 1) - places).abs()
