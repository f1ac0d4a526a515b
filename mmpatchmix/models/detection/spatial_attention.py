"""Self-attention over a map, global or in windows, with or without relative position."""

import torch
from mmpretrain.models.backbones.vit_sam import get_rel_pos, window_partition, window_unpartition
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F


class SpatialAttention(MultiheadAttention):
    """mmpretrain's attention of a ViT block, on maps instead of token lists.

    As in ViTDet (https://arxiv.org/abs/2203.16527), maps that a window does not divide are padded
    with zeros, which take part in the attention. The decomposed relative position adds
    ``q . r_h + q . r_w`` to the logit of a query and a key that lie ``h`` rows and ``w`` columns
    apart. This sum is the product of ``[q . r_h for every row, q . r_w for every column]`` with the
    one-hot row and column of the key. These are appended to query and key, so a fused kernel that
    takes queries wider than values stores no matrix of all pairs.

    Args:
        embed_dims: Width of the ViT.
        num_heads: Number of heads; must divide the width.
        window_size: Cells per side of a window; 0 attends globally.
        rel_pos_size: Cells per side for which the relative position is learned, before it is
            interpolated; 0 disables it.
        **kwargs: Those of :class:`mmpretrain.models.utils.MultiheadAttention`.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, window_size: int = 0, rel_pos_size: int = 0, **kwargs
    ) -> None:
        super().__init__(embed_dims, num_heads, **kwargs)
        self.window_size = window_size
        self.use_rel_pos = rel_pos_size > 0
        if self.use_rel_pos:  # zero, so that it has no effect at first
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, self.head_dims))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, self.head_dims))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``(N, H, W, C)``; returns the same shape, without the shortcut."""
        size = x.shape[1:3]
        if self.window_size:
            x, padded = window_partition(x, self.window_size)  # (N * windows, h, w, C)
        x = self.proj_drop(self.proj(self._attend(x)))
        if self.window_size:
            x = window_unpartition(x, self.window_size, padded, size)
        # Last, so that drop path drops images and not windows.
        return self.out_drop(self.gamma1(x))

    def _attend(self, x: Tensor) -> Tensor:
        num, height, width, _ = x.shape
        qkv = self.qkv(x).view(num, height * width, 3, self.num_heads, self.head_dims)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (N, heads, H * W, D)
        scale = self.head_dims**-0.5
        if self.use_rel_pos:
            q, k = self._append_position(q, k, (height, width), scale)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        return x.transpose(1, 2).reshape(num, height, width, self.embed_dims)

    def _append_position(
        self, q: Tensor, k: Tensor, size: tuple[int, int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Append ``H + W`` channels to query and key, ``(N, heads, H * W, D)`` each."""
        height, width = size
        rows = get_rel_pos(height, height, self.rel_pos_h).to(q.dtype)  # (H, H, D)
        columns = get_rel_pos(width, width, self.rel_pos_w).to(q.dtype)  # (W, W, D)
        grid = q.unflatten(2, size)  # (N, heads, H, W, D)
        by_row = torch.einsum('nahwd,hkd->nahwk', grid, rows)
        by_column = torch.einsum('nahwd,wkd->nahwk', grid, columns)
        # The fused kernel multiplies all logits by the scale; ViTDet adds these unscaled.
        position = torch.cat([by_row, by_column], -1).flatten(2, 3) / scale
        cells = torch.arange(height * width, device=q.device)
        one_hot = torch.cat([F.one_hot(cells // width, height), F.one_hot(cells % width, width)], 1)
        one_hot = one_hot.to(q.dtype).expand(*k.shape[:2], -1, -1)
        return torch.cat([q, position.to(q.dtype)], -1), torch.cat([k, one_hot], -1)
