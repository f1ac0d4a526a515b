"""The block of the ViTs, with the parameters of mmpretrain's and fewer passes over memory."""

import torch
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor
from torch.nn import functional as F

# Largest number of keys for which attend() computes two plain products on a CPU.
PLAIN_UP_TO = 512


class Block(TransformerEncoderLayer):
    """Pre-norm transformer block, made of the submodules of mmpretrain's ``layer``.

    The backward of attention concatenates the gradients of query, key and value once; mmpretrain's
    adds three zero-filled tensors of the size of all three.
    """

    def __init__(self, layer: TransformerEncoderLayer) -> None:
        BaseModule.__init__(self, layer.init_cfg)
        self.embed_dims = layer.embed_dims
        self.ln1, self.attn, self.ln2, self.ffn = layer.ln1, layer.attn, layer.ln2, layer.ffn
        self.attn.out_drop = DropPathInOnePass(self.attn.out_drop.drop_prob)
        if isinstance(self.ffn, FFN):
            self.ffn.dropout_layer = DropPathInOnePass(self.ffn.dropout_layer.drop_prob)

    def forward(self, x: Tensor, class_token_only: bool = False) -> Tensor:
        """Encode tokens ``(N, T, D)``, the class token first; return them or ``(N, 1, D)``."""
        normed = self.ln1(x)
        if class_token_only:
            x = x[:, :1] + self._attend_class_token(normed)
        else:
            x = x + self._attend(normed)
        if isinstance(self.ffn, FFN):  # without its wrapper, which torch 2.6 cannot compile
            return FFN.forward.__wrapped__(self.ffn, self.ln2(x), x)
        return self.ffn(self.ln2(x), x)

    def _attend(self, x: Tensor) -> Tensor:
        qkv = self.attn.qkv(x).unflatten(-1, (3, self.attn.num_heads, -1))
        return self._attend_to(*qkv.unbind(2))

    def _attend_class_token(self, x: Tensor) -> Tensor:
        """Compute keys and values of all tokens, but one query."""
        weight, bias, width = self.attn.qkv.weight, self.attn.qkv.bias, self.embed_dims
        query_bias, key_value_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(x[:, :1], weight[:width], query_bias)
        key_value = F.linear(x, weight[width:], key_value_bias)
        key, value = key_value.unflatten(-1, (2, self.attn.num_heads, -1)).unbind(2)
        return self._attend_to(query.unflatten(-1, (self.attn.num_heads, -1)), key, value)

    def _attend_to(self, *qkv: Tensor) -> Tensor:
        """Attend with query, key and value, each ``(N, tokens, heads, D / heads)``."""
        attn = self.attn
        dropout = attn.attn_drop if attn.training else 0.0
        attended = attend(*(part.transpose(1, 2) for part in qkv), dropout)
        attended = attn.proj(attended.transpose(1, 2).flatten(2))
        return attn.out_drop(attn.gamma1(attn.proj_drop(attended)))


class DropPathInOnePass(DropPath):
    """mmcv's ``DropPath`` with one pass over the branch instead of two."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__(float(drop_prob))  # torch.compile cannot branch on numpy's scalars

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole images of ``(N, ...)`` and scale the others."""
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        drawn = torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x * (drawn + keep).floor_().div_(keep)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute scaled dot-product attention in the faster of two ways.

    In bfloat16 on CPUs two plain matrix products take 0.7 of the time of torch's fused attention
    forward and 0.4 with the backward. They store a weight for each query and key, hence the limit
    of ``PLAIN_UP_TO`` keys. Elsewhere fused attention is faster. ``query`` is ``(N, heads, Q, D)``,
    ``key`` and ``value`` are ``(N, heads, T, D)``; ``dropout_p`` in [0, 1] drops weights.
    """
    is_slow = query.device.type == 'cpu' and query.dtype == torch.bfloat16
    if is_slow and key.shape[-2] <= PLAIN_UP_TO:
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (N, heads, Q, T)
        return F.dropout(weights.softmax(-1), dropout_p) @ value
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
