"""Augment a batch on an accelerator: few operations on many images, without synchronisation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.models.augment.colours import change_colours
from mmpatchmix.models.augment.plan import Plan
from mmpatchmix.models.mixing import copy_to_device

CONVOLVES = ('cpu',)  # types of devices on which convolutions blur faster than matrix products


def augment(images: Tensor, plan: Plan, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
    """Augment and normalise a batch by a plan; no value is copied from the device.

    Arguments and result are those of :meth:`ViewAugment.forward`. The plan is without colours
    unless C is 3.
    """
    flip = copy_to_device(plan.flip, images.device).view(*images.shape[:-3], 1, 1, 1)
    work = images.new_empty(images.shape)  # contiguous
    torch.where(flip, images.flip(-1), images, out=work)
    # bfloat16 has 8 bits for 256 grey levels, and hue is a quotient of differences.
    dtype = choose_dtype(images)
    with torch.autocast(images.device.type, enabled=False):
        work = change_colours(work.flatten(0, -4), plan, to_rgb)
        start = plan.solarize_from
        _change(work, plan.blur, lambda some: _blur(some, plan))
        _change(work, plan.solarize, lambda some: torch.where(some >= start, 255 - some, some))
        out = torch.empty_like(work, dtype=dtype)
        return torch.addcmul(-mean / std, work, 1 / std, out=out).view(images.shape)


def choose_dtype(images: Tensor) -> torch.dtype:
    """Return the type of the views: that of autocast, to which the first layer would cast."""
    kind = images.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else torch.float32


def _change(images: Tensor, coins: Tensor, operation: Callable[[Tensor], Tensor]) -> None:
    """Apply an operation in place to the images selected by ``coins``, (N,) bool."""
    rows = coins.nonzero()[:, 0]  # (K,), on the host
    if len(rows):
        rows = copy_to_device(rows, images.device)
        images.index_copy_(0, rows, operation(images.index_select(0, rows)))


def _blur(images: Tensor, plan: Plan) -> Tensor:
    """Blur the images of ``plan.blur``, (K, C, H, W), each by its own Gaussian."""
    channels, height, width = images.shape[1:]
    radius = plan.blur_side // 2
    offsets = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (offsets / plan.sigma[plan.blur, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    kernels = copy_to_device(kernels.to(images.dtype), images.device)  # (K * C, side)
    planes = images.flatten(0, 1)  # (K * C, H, W)
    if images.device.type in CONVOLVES:
        planes = F.pad(planes[None], [radius] * 4, mode='reflect')
        planes = F.conv2d(planes, kernels[:, None, None], groups=len(kernels))
        planes = F.conv2d(planes, kernels[:, None, :, None], groups=len(kernels))[0]
    else:
        down = _as_matrices(kernels, height)
        across = down if width == height else _as_matrices(kernels, width)
        planes = down @ planes @ across.mT
    return planes.view(images.shape)


def _as_matrices(kernels: Tensor, size: int) -> Tensor:
    """Return matrices (K, size, size) whose products are convolutions with kernels (K, side)."""
    side = kernels.shape[1]
    positions = torch.arange(-(side // 2), size + side // 2).abs()
    positions = (size - 1) - ((size - 1) - positions).abs()  # reflected, 0 to size - 1
    positions = positions.unfold(0, size, 1).contiguous()  # (side, size)
    positions = copy_to_device(positions, kernels.device)
    is_read = positions[..., None] == torch.arange(size, device=kernels.device)
    return (kernels @ is_read.to(kernels.dtype).flatten(1)).view(-1, size, size)
