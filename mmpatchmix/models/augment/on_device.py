"""Augment a batch on an accelerator: few operations on many images, none that waits for it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.models.augment import colours, fused_colours
from mmpatchmix.models.augment.plan import Plan, choose_work_dtype, send

CONVOLVES = ('cpu',)  # kinds of devices that blur more quickly so than by products of matrices


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise a batch; see :func:`augment_views`, of which this has one."""
    return augment_views([images], plan, mean, std, to_rgb)


def augment_views(
    views: Sequence[Tensor], plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False
) -> Tensor:
    """Augment and normalise views of one size together.

    The plan is on the host, so only the images that an operation applies to are processed,
    and the device is never asked for a value. Where a compiler is there, colours are two
    kernels, see :mod:`~mmpatchmix.models.augment.fused_colours`.

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
        images = _take(views, plan.flip)
        work = fused_colours.try_apply(images, plan, to_rgb)
        if work is None:
            work = (images.flip(1) if to_rgb else images).to(work_dtype)
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


def _take(views: Sequence[Tensor], flip: Tensor) -> Tensor:
    """Copy views as one contiguous batch, mirrored where ``flip`` says so."""
    sizes = [view.shape[:-3] for view in views]
    nums = [size.numel() for size in sizes]
    images = views[0].new_empty(sum(nums), *views[0].shape[-3:])
    flips = send(flip, images).split(nums)
    for view, size, part, coins in zip(views, sizes, images.split(nums), flips, strict=True):
        torch.where(coins.view(*size, 1, 1, 1), view.flip(-1), view, out=part.view(view.shape))
    return images


def _change(images: Tensor, coins: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """Apply an operation in place to the images whose coin, (N,) bool, says so."""
    rows = coins.nonzero()[:, 0]  # (K,), on the host
    if len(rows):
        place = send(rows, images)
        images.index_copy_(0, place, operation(images.index_select(0, place)))


def _blur(images: Tensor, plan: Plan) -> None:
    """Blur each image by its own Gaussian in place."""
    rows = plan.blur.nonzero()[:, 0]  # (K,)
    if len(rows) == 0:
        return
    channels, height, width = images.shape[1:]
    radius = plan.blur_side // 2
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offsets / plan.sigma[rows, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    kernels = send(kernels.to(images.dtype), images)  # (K * C, side)
    place = send(rows, images)
    planes = images.index_select(0, place).flatten(0, 1)  # (K * C, H, W)
    if images.device.type in CONVOLVES:
        planes = F.pad(planes[None], [radius] * 4, mode='reflect')
        planes = F.conv2d(planes, kernels[:, None, None], groups=len(kernels))
        planes = F.conv2d(planes, kernels[:, None, :, None], groups=len(kernels))[0]
    else:
        down = _as_matrices(kernels, height)
        across = down if width == height else _as_matrices(kernels, width)
        planes = down @ planes @ across.mT
    images.index_copy_(0, place, planes.unflatten(0, (-1, channels)))


def _as_matrices(kernels: Tensor, size: int) -> Tensor:
    """Return the matrices, (K, size, size), that convolve as kernels, (K, side), do.

    A row holds the weights of the places that its place is made of; what lies beyond the ends is
    reflected.
    """
    side = kernels.shape[1]
    places = _reflect(size, side // 2).unfold(0, size, 1).contiguous()  # (side, size)
    is_read = send(places, kernels)[..., None] == torch.arange(size, device=kernels.device)
    return (kernels @ is_read.to(kernels.dtype).flatten(1)).view(-1, size, size)


def _reflect(size: int, radius: int) -> Tensor:
    """Return the places, 0 to size - 1, that -radius to size + radius - 1 are mirrored to."""
    places = torch.arange(-radius, size + radius).abs()
    return (size - 1) - ((size - 1) - places).abs()
