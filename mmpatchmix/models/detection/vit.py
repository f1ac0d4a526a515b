"""ViTs as backbones of detectors, plain or with window attention."""

import logging
import math
from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.model import ModuleList
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor

from mmpatchmix.models.detection.spatial_attention import SpatialAttention
from mmpatchmix.models.vit import PatchMixViT
from mmpatchmix.models.vit_blocks import Block
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class DetectionViT(PatchMixViT):
    """A plain ViT that returns maps of several blocks, for images of any size.

    ``forward`` takes ``(N, C, H, W)``, pads sides that the patch size does not divide, and returns
    a map ``(N, D, H / patch, W / patch)`` for each of ``out_indices``. Every block attends
    globally, the class token included. The position embedding is interpolated to the size of each
    batch. Random weights are drawn as in mmpretrain.

    Args:
        arch: As in :class:`mmpatchmix.models.PatchMixViT`.
        out_indices: Blocks that return a map, from 0; a warning if the last is none of them.
        final_norm: Whether the map of the last block passes the final LayerNorm.
        **kwargs: Those of :class:`mmpatchmix.models.PatchMixViT`.
    """

    # The last norm is not used by default (ln2 if patch tokens were averaged).
    dropped = ('ln1.', 'ln2.')
    pads_images = True

    def __init__(
        self,
        arch: dict | str,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        final_norm: bool = False,
        **kwargs,
    ) -> None:
        kwargs |= dict(out_type='featmap', final_norm=final_norm)
        super().__init__(arch, out_indices=list(out_indices), **kwargs)
        last = self.num_layers - 1
        if max(self.out_indices) < last:
            text = f'backbone.out_indices={out_indices}: later blocks, up to {last}, are not used.'
            print_log(text, 'current', logging.WARNING)
        self.dropped = tuple(name for name in self.dropped if not (final_norm and name == 'ln1.'))

    def _draw_weights(self) -> None:
        VisionTransformer.init_weights(self)


@MODELS.register_module()
class WindowedViT(DetectionViT):
    """The backbone of ViTDet (https://arxiv.org/abs/2203.16527) on mmpretrain's blocks.

    Most blocks attend within windows, a few globally. There is no class token. ``ValueError`` if a
    global block does not exist or a size is not positive.

    Args:
        arch: As in :class:`DetectionViT`.
        window_size: Cells per side of a window.
        global_blocks: Blocks that attend globally, from 0; by default the last of each quarter.
        use_rel_pos: Whether to learn ViTDet's decomposed relative position.
        rel_pos_size: Cells per side of the map for which global blocks learn it.
        layer_scale_init_value: As in :class:`mmpretrain.models.VisionTransformer`.
        out_indices: Blocks that return a map; by default the last.
        **kwargs: Those of :class:`DetectionViT`.
    """

    dropped = ('ln1.', 'ln2.', 'cls_token', 'register_tokens')
    new = ('.attn.rel_pos_h', '.attn.rel_pos_w')

    def __init__(
        self,
        arch: dict | str,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        use_rel_pos: bool = False,
        rel_pos_size: int = 64,
        layer_scale_init_value: float = 0.0,
        out_indices: Sequence[int] = (-1,),
        **kwargs,
    ) -> None:
        super().__init__(
            arch,
            layer_scale_init_value=layer_scale_init_value,
            out_indices=out_indices,
            with_cls_token=False,
            **(kwargs | {'num_registers': 0}),  # maps have no place for them
        )
        if window_size < 1 or rel_pos_size < 1:
            raise ValueError(
                f'window_size={window_size} and rel_pos_size={rel_pos_size} of the backbone must '
                'be positive. For global attention everywhere use mmpatchmix.DetectionViT.'
            )
        if global_blocks is None:
            global_blocks = [math.ceil(self.num_layers * part / 4) - 1 for part in (1, 2, 3, 4)]
        if outside := [block for block in global_blocks if not 0 <= block < self.num_layers]:
            raise ValueError(
                f'backbone.global_blocks names {outside}, but blocks are counted from 0 to '
                f'{self.num_layers - 1}.'
            )
        for index, layer in enumerate(self.layers):
            size = 0 if index in global_blocks else window_size
            layer.attn = SpatialAttention(
                self.embed_dims,
                self.arch_settings['num_heads'],
                window_size=size,
                rel_pos_size=(size or rel_pos_size) if use_rel_pos else 0,
                attn_drop=layer.attn.attn_drop,
                proj_drop=layer.attn.proj_drop.p,
                dropout_layer={'type': 'DropPath', 'drop_prob': layer.attn.out_drop.drop_prob},
                qkv_bias=layer.attn.qkv.bias is not None,
                layer_scale_init_value=layer_scale_init_value,
            ).requires_grad_(layer.ln1.weight.requires_grad)  # frozen_stages
        self.layers = ModuleList(WindowBlock(layer) for layer in self.layers)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, size = super()._embed(images)
        return tokens.unflatten(1, size), size  # (N, H, W, C)

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        return x.permute(0, 3, 1, 2)  # (N, C, H, W)


class WindowBlock(Block):
    """Block on a map ``(N, H, W, C)`` whose attention is a :class:`SpatialAttention`."""

    def _attend(self, x: Tensor) -> Tensor:
        return self.attn(x)
