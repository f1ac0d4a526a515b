"""Mixup, CutMix and ResizeMix with PatchMix's soft targets, for comparison.

Each function mixes ``(N, C, H, W)`` floating point images, ``num_mix=M`` in each, and returns the
mixed images and shares ``(M,)``, which sum to 1: mixed ``n`` holds ``shares[j]`` of image
``(n + j) mod N``. One draw serves the whole batch, as in PatchMix. Select one with
``data_preprocessor.mixing=dict(type='mmpatchmix.cut_mix')``; register a function of your own, with
the same arguments and results, in :data:`mmpatchmix.registry.FUNCTIONS`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.models.mixing import draw_shares, group_shares, mix_patches
from mmpatchmix.registry import FUNCTIONS


@FUNCTIONS.register_module()
def mix_up(images: Tensor, num_mix: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mix by weighted sums of whole images (Mixup, https://arxiv.org/abs/1710.09412).

    ``alpha`` is the parameter of the Dirichlet distribution of the shares; 1 is uniform.
    """
    shares = draw_shares(num_mix, alpha)
    mixed = sum(share * images.roll(-j, 0) for j, share in enumerate(shares.tolist()))
    return mixed, shares


@FUNCTIONS.register_module()
def cut_mix(images: Tensor, num_mix: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mix by boxes cut out at the same place (CutMix, https://arxiv.org/abs/1905.04899).

    Box ``j`` of ``M - 1`` has the drawn share of the area before it is cut at the border; a later
    box covers an earlier one. The returned shares are those of the visible pixels. ``alpha`` is
    that of :func:`mix_up`.
    """
    height, width = images.shape[-2:]
    owner = torch.zeros(height, width, dtype=torch.int64)
    for j, side in enumerate(draw_shares(num_mix, alpha).sqrt().tolist()[1:], 1):
        rows, columns = (_draw_range(size, round(side * size)) for size in (height, width))
        owner[rows, columns] = j
    return mix_patches(images, owner.flatten(), 1), group_shares(owner.flatten(), num_mix)


@FUNCTIONS.register_module()
def resize_mix(
    images: Tensor, num_mix: int, scale: tuple[float, float] = (0.1, 0.8)
) -> tuple[Tensor, Tensor]:
    """Mix by pasting other images, whole and smaller (ResizeMix, https://arxiv.org/abs/2012.11101).

    ``M - 1`` images are pasted; a later one covers an earlier one. ``scale`` is the range of the
    pasted side, as a share of the image's.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f'resize_mix: scale must be two numbers, 0 < low <= high <= 1; got {scale}'
        )
    height, width = images.shape[-2:]
    owner = torch.zeros(height, width, dtype=torch.int64)
    mixed = images.clone()
    for j in range(1, num_mix):
        factor = scale[0] + (scale[1] - scale[0]) * float(torch.rand(()))
        size = [max(1, int(factor * side)) for side in (height, width)]
        top, left = (
            int(torch.randint(side - small + 1, ()))
            for side, small in zip((height, width), size, strict=True)
        )
        box = slice(top, top + size[0]), slice(left, left + size[1])
        small = F.interpolate(images.roll(-j, 0).float(), size, mode='bilinear', antialias=True)
        mixed[..., box[0], box[1]] = small
        owner[box] = j
    return mixed, group_shares(owner.flatten(), num_mix)


def _draw_range(size: int, length: int) -> slice:
    """Place ``length`` pixels around a random centre, cut at the borders."""
    start = int(torch.randint(size, ())) - length // 2
    return slice(max(start, 0), max(start + length, 0))
