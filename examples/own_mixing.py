"""A custom mixing: bands of rows instead of patches.

    PYTHONPATH=examples mmpatchmix train examples/own_mixing_digits.py

A mixing returns the mixed images and the shares of their sources; soft targets and losses follow
from the shares. It is called once for each view.
"""

import torch
from torch import Tensor

from mmpatchmix.models import mix_patches
from mmpatchmix.models.mixing import group_shares
from mmpatchmix.registry import FUNCTIONS


@FUNCTIONS.register_module()
def mix_bands(images: Tensor, num_mix: int, height: int = 4) -> tuple[Tensor, Tensor]:
    """Mix horizontal bands: mixed image ``n`` takes band ``b`` of image ``n + (b mod M)``.

    Args:
        images: ``(N, C, H, W)``.
        num_mix: ``M``.
        height: Of a band, in pixels.

    Returns:
        tuple: Mixed images ``(N, C, H, W)`` and shares ``(M,)``, which sum to 1.
    """
    rows, columns = images.shape[-2:]
    band = (torch.arange(rows) // height + torch.randint(num_mix, ())) % num_mix  # (H,)
    groups = band[:, None].expand(rows, columns).flatten()  # (H * W,), one per pixel
    return mix_patches(images, groups, patch_size=1), group_shares(groups, num_mix)
