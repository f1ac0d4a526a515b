"""Blocks of mmpretrain's ViT, computed in fewer passes over memory."""

from collections.abc import Callable

import torch
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Keys up to which two plain products beat the fused attention, see attend().
PLAIN_UP_TO = 512


class QuickAttention(MultiheadAttention):
    """mmpretrain's attention, whose backward fills no gradients with zeros.

    There the gradients of query, key and value are three tensors of the size of all three, filled
    with zeros and added up; here they are put side by side once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attend; ``(N, T, D)`` to ``(N, T, D)``."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dims))
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        dropout = self.attn_drop if self.training else 0.0
        attended = self.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return _project(self, attended.transpose(1, 2).flatten(2))


class QuickDropPath(DropPath):
    """mmcv's ``DropPath`` with one pass over the branch instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole images of ``(N, ...)``, and scale the others."""
        if not self.training or not self.drop_prob:
            return x
        keep = 1 - self.drop_prob
        drawn = torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x * (drawn + keep).floor_().div_(keep)


class QuickFFN(FFN):
    """mmcv's ``FFN`` without the wrapper for renamed arguments, which torch 2.6 cannot compile."""

    forward = FFN.forward.__wrapped__


# By the exact class: a subclass has a forward of its own.
QUICK = {MultiheadAttention: QuickAttention, DropPath: QuickDropPath, FFN: QuickFFN}


def quicken_blocks(vit: nn.Module) -> None:
    """Make the blocks of a ViT of mmpretrain compute the same in less time.

    Args:
        vit: Whose modules change their class; parameters and their names stay.
    """
    for module in vit.modules():
        module.__class__ = QUICK.get(type(module), type(module))
        if isinstance(module, QuickAttention):
            module.scaled_dot_product_attention = attend
        elif isinstance(module, QuickDropPath):
            # numpy's number, which torch.compile takes for data that it cannot branch on
            module.drop_prob = float(module.drop_prob)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Compute scaled dot-product attention in the way that is quicker here.

    torch's fused attention is, except in bfloat16 on CPU cores: there two plain products take 0.7
    of its time forward and 0.4 with the backward (``benchmarks/attention.py``). They keep a weight
    for each query and key, so they are for up to some 500 keys.

    Args:
        query: ``(N, heads, Q, D)``.
        key: ``(N, heads, T, D)``.
        value: ``(N, heads, T, D)``.
        dropout_p: Share of the weights to drop, in [0, 1].

    Returns:
        Tensor: ``(N, heads, Q, D)``.
    """
    is_slow = query.device.type == 'cpu' and query.dtype == torch.bfloat16
    if is_slow and key.shape[-2] <= PLAIN_UP_TO:
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (N, heads, Q, T)
        return F.dropout(weights.softmax(-1), dropout_p) @ value
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)


def run_block(layer: Callable[[Tensor], Tensor], tokens: Tensor, with_cp: bool) -> Tensor:
    """Run a block; ``with_cp`` keeps only its input and runs it again in the backward."""
    if with_cp and torch.is_grad_enabled():
        return checkpoint(layer, tokens, use_reentrant=False)
    return layer(tokens)


def encode_class_token(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Run mmpretrain's encoder layer for the first token alone.

    No keys and values are made for its one query: ``q (W x)`` is ``(q W) x``, and a weighted sum of
    ``W x`` is ``W`` times that of ``x``. A bias of the keys adds the same to all scores of a query,
    which the softmax takes away.

    Args:
        layer: A ``TransformerEncoderLayer`` of mmpretrain.
        tokens: ``(N, T, D)``, the class token first.

    Returns:
        Tensor: ``(N, 1, D)``.
    """
    attn = layer.attn
    by_head = (attn.num_heads, attn.head_dims)
    to_query, to_key, to_value = attn.qkv.weight.chunk(3)
    query_bias, _, value_bias = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
    normed = layer.ln1(tokens)
    query = F.linear(normed[:, 0], to_query, query_bias) * attn.head_dims**-0.5
    query = query.unflatten(1, by_head).transpose(0, 1) @ to_key.unflatten(0, by_head)
    normed = normed.to(query.dtype)  # once, under autocast
    weights = (query.transpose(0, 1) @ normed.mT).softmax(-1)  # (N, heads, T)
    weights = F.dropout(weights, attn.attn_drop, attn.training)
    summed = (weights @ normed).transpose(0, 1)  # (heads, N, D)
    attended = (summed @ to_value.unflatten(0, by_head).mT).transpose(0, 1)  # (N, heads, D / heads)
    if value_bias is not None:
        attended = attended + weights.sum(-1, keepdim=True) * value_bias.unflatten(0, by_head)
    token = tokens[:, :1] + _project(attn, attended.flatten(1)[:, None])
    return layer.ffn(layer.ln2(token), identity=token)


def _project(attn: MultiheadAttention, attended: Tensor) -> Tensor:
    return attn.out_drop(attn.gamma1(attn.proj_drop(attn.proj(attended))))
