"""mmpretrain's ViT as the backbone of a detector, plain or with window attention."""

import math
from collections.abc import Sequence

from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor

from mmpatchmix.models.detection.spatial_attention import SpatialAttention
from mmpatchmix.models.load_backbone import load_backbone
from mmpatchmix.models.vit import check_heads, embed_tokens
from mmpatchmix.models.vit_blocks import quicken_blocks, run_block
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class DetectionViT(VisionTransformer):
    """A plain ViT that gives maps of several blocks, for images of any size.

    Every block attends globally, the class token included. The position
    embedding is interpolated to each batch's size. There is no final LayerNorm.

    Args:
        arch: Width, layers, heads and feed-forward width as a dict; mmpretrain's
            ``small`` and ``deit-small`` are other networks than the paper's.
        checkpoint: File to start from: a pre-training checkpoint of ours (the
            momentum encoder's weights are taken), a converted backbone, or any
            layout that :func:`mmpatchmix.checkpoints.load_backbone` knows. Every
            key fits or is listed in an error.
        encoder: ``'momentum'`` or ``'query'``: which encoder of a pre-training checkpoint.
        with_cp: Recompute blocks in the backward: one more pass of the blocks for
            the memory of what they keep inside.
        out_indices: Blocks to give maps of, from 0.
        **kwargs: Those of :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        ValueError: If the number of heads does not divide the width.
    """

    # What of a pre-trained ViT has no place here, its last norm (ln2 where the patch tokens are
    # averaged), and what is new.
    dropped = ('ln1.', 'ln2.')
    new = ()

    def __init__(
        self,
        arch: dict | str,
        checkpoint: str | None = None,
        encoder: str = 'momentum',
        with_cp: bool = False,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        with_cls_token: bool = True,
        **kwargs,
    ) -> None:
        check_heads(arch)
        super().__init__(
            arch=arch,
            out_indices=list(out_indices),
            out_type='featmap',
            final_norm=False,
            with_cls_token=with_cls_token,
            **kwargs,
        )
        quicken_blocks(self)
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.with_cp = with_cp

    def init_weights(self) -> None:
        """Initialise, then load ``checkpoint`` where there is one."""
        super().init_weights()
        if self.checkpoint:
            load_backbone(self, self.checkpoint, self.encoder, drop=self.dropped, new=self.new)

    def _prepare_pos_embed(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # mmpretrain drops the class token's position only where the sizes are equal.
        name = prefix + 'pos_embed'
        if not self.with_cls_token and name in state_dict:
            position = state_dict[name]  # (1, L, C)
            if math.isqrt(position.shape[1] - 1) ** 2 == position.shape[1] - 1:
                state_dict[name] = position[:, 1:]
        super()._prepare_pos_embed(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            x: ``(N, 3, H, W)``; sides that are no multiple of the patch are padded.

        Returns:
            A map ``(N, C, H / patch, W / patch)`` for each of ``out_indices``.
        """
        x, size = self._embed(x)
        maps = []
        for index, layer in enumerate(self.layers):
            x = run_block(layer, x, self.with_cp)
            if index in self.out_indices:
                maps.append(self._format_output(x, size))
        return tuple(maps)

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return embed_tokens(self, x)  # (N, T, C)


@MODELS.register_module()
class WindowedViT(DetectionViT):
    """The backbone of ViTDet (https://arxiv.org/abs/2203.16527) on mmpretrain's blocks.

    Most blocks attend within windows, a few globally. There is no class token.
    Parameters are those of mmpretrain's ViT, and ``attn.rel_pos_h``,
    ``attn.rel_pos_w`` of each block where relative position is on.

    Args:
        arch: As in :class:`DetectionViT`.
        window_size: Cells per side of a window.
        global_blocks: Blocks that attend globally, from 0; by default the last
            of each quarter.
        use_rel_pos: Learn ViTDet's decomposed relative position.
        rel_pos_size: Cells per side of the map that global blocks learn it for,
            64 for images of 1024 pixels.
        layer_scale_init_value: As in :class:`mmpretrain.models.VisionTransformer`.
        drop_path_rate: Of the last block; blocks before it have linearly less.
        out_indices: Blocks to give maps of; by default the last.
        **kwargs: Those of :class:`DetectionViT`.

    Raises:
        ValueError: If a global block does not exist or a size is not positive.
    """

    dropped = ('ln1.', 'ln2.', 'cls_token')
    new = ('.attn.rel_pos_h', '.attn.rel_pos_w')

    def __init__(
        self,
        arch: dict | str,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        use_rel_pos: bool = False,
        rel_pos_size: int = 64,
        layer_scale_init_value: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (-1,),
        **kwargs,
    ) -> None:
        super().__init__(
            arch,
            layer_scale_init_value=layer_scale_init_value,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            with_cls_token=False,
            **kwargs,
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
            )
        quicken_blocks(self)  # drop path of the new attention

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x, size = super()._embed(x)
        return x.unflatten(1, size), size  # (N, H, W, C)

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        return x.permute(0, 3, 1, 2)  # (N, C, H, W)
