"""Vision Transformers: PatchMix's own, and the one that starts from a checkpoint."""

import logging
import math
from functools import partial

import torch
from mmengine.logging import print_log
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed, to_2tuple
from torch import Tensor, nn

from mmpatchmix.models.load_backbone import load_backbone
from mmpatchmix.models.vit_blocks import encode_class_token, quicken_blocks, run_block
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class PatchMixViT(VisionTransformer):
    """mmpretrain's ViT with the initialisation of MoCo v3.

    Linear layers are xavier-uniform, query, key and value being three matrices
    of their own; the patch embedding is xavier-uniform and trained; the class
    token has a standard deviation of 1e-6. Unlike in MoCo v3 the position
    embedding is learned, from a truncated normal distribution of 0.02.

    Where nothing but the final class token is asked for, the last block computes
    nothing else: keys and values of all tokens, but query, projection and
    feed-forward of one. The result is the same, for a fifteenth less arithmetic.

    Parameter names are those of mmpretrain's ViT, so weights travel both ways.
    Give ``arch`` as a dict: mmpretrain's ``small`` (768 wide, 8 layers) and
    ``deit-small`` (6 heads) are other networks than the paper's.

    Sources: https://arxiv.org/abs/2306.12243 and MoCo v3,
    https://arxiv.org/abs/2104.02057.

    Args:
        arch: Width, layers, heads and feed-forward width as a dict.
        img_size: Side of the images whose position embedding is learned, in pixels.
        patch_size: Side of a patch, in pixels.
        with_cp: Recompute the blocks in the backward: one more forward of them for
            the memory of what they keep inside.
        num_registers: Tokens between that of the class and those of the patches, without
            positions and in no output, as in https://arxiv.org/abs/2309.16588 (DINOv2).
        **kwargs: Those of :class:`mmpretrain.models.VisionTransformer`. Unlike there,
            ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` takes any checkpoint that
            :func:`mmpatchmix.checkpoints.read_backbone` knows and loads all of it or stops;
            ``prefix=...`` chooses one of several encoders.

    Raises:
        ValueError: If the patch size does not divide the image size, or the
            number of heads does not divide the width.
    """

    def __init__(
        self,
        arch: dict | str,
        img_size: int | tuple = 224,
        patch_size: int = 16,
        with_cp: bool = False,
        num_registers: int = 0,
        **kwargs,
    ) -> None:
        if any(side % patch_size for side in to_2tuple(img_size)):
            raise ValueError(
                f'img_size={img_size} is not divisible by the patch_size={patch_size} of the ViT: '
                'change one of them (backbone.img_size, backbone.patch_size).'
            )
        check_heads(arch)
        super().__init__(arch=arch, img_size=img_size, patch_size=patch_size, **kwargs)
        self.patch_size = patch_size
        self.with_cp = with_cp
        self.register_tokens = None
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, self.embed_dims))
        quicken_blocks(self)

    def init_weights(self) -> None:
        """Initialise as described above, or load what ``init_cfg`` names.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file does not fit.
        """
        pretrained = find_pretrained(self.init_cfg)
        if pretrained:
            # Not by mmengine, which loads what fits and goes on.
            others, self.init_cfg = self.init_cfg, None
            super().init_weights()
            self.init_cfg = others
            load_backbone(self, pretrained['checkpoint'], prefix=pretrained.get('prefix'))
            return
        super().init_weights()  # the position embedding: truncated normal, 0.02
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith('attn.qkv'):
                    for matrix in module.weight.chunk(3):
                        nn.init.xavier_uniform_(matrix)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.patch_embed.projection
        fan_in = projection.weight[0].numel()
        bound = math.sqrt(6.0 / (fan_in + self.embed_dims))
        nn.init.uniform_(projection.weight, -bound, bound)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode images of any size that the patch size divides.

        Args:
            x: ``(N, C, H, W)``. The position embedding is interpolated where
                ``H x W`` is not ``img_size``.

        Returns:
            tuple: With the default ``out_type``, the class token, ``(N, D)``.

        Raises:
            ValueError: If the patch size does not divide the image.
        """
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f'a view of {height}x{width} pixels is not divisible by the patch size '
                f'{self.patch_size} of the ViT: change the crop size of the pipeline.'
            )
        tokens, size = embed_tokens(self, x)
        tokens = self._insert_registers(tokens)
        last = self.num_layers - 1
        class_token_only = self.out_type == 'cls_token' and list(self.out_indices) == [last]
        outputs = []
        for index, layer in enumerate(self.layers):
            if index == last and class_token_only:
                layer = partial(encode_class_token, layer)
            tokens = run_block(layer, tokens, self.with_cp)
            if index == last and self.final_norm:
                tokens = self.ln1(tokens)
            if index in self.out_indices:
                outputs.append(self._format_output(self._remove_registers(tokens), size))
        return tuple(outputs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter, and how many there are; see mmpretrain's."""
        if param_name == f'{prefix}register_tokens':
            param_name = f'{prefix}cls_token'
        return super().get_layer_depth(param_name, prefix)

    def _insert_registers(self, tokens: Tensor) -> Tensor:
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def _remove_registers(self, tokens: Tensor) -> Tensor:
        if self.register_tokens is None or tokens.shape[1] == 1:  # the class token alone
            return tokens
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.register_tokens.shape[1] :]], dim=1)


@MODELS.register_module()
class PretrainedViT(VisionTransformer):
    """mmpretrain's ViT that loads all of a pre-trained backbone, or stops.

    ``init_cfg=dict(type='Pretrained', ...)`` of mmengine only logs what did not
    load; here a key that is missing, unexpected or of another shape, and another
    number of heads, is an error that names it. Position embeddings are
    interpolated to ``img_size``.

    Args:
        checkpoint (str, optional): A checkpoint of ours as it is, a converted
            file, or any other that
            :func:`mmpatchmix.checkpoints.read_backbone` knows. None starts
            from random weights and warns.
        encoder (str): ``'momentum'`` or ``'query'``, where the file has both.
        **kwargs: Those of :class:`mmpretrain.models.VisionTransformer`. With
            ``frozen_stages`` equal to the number of layers the whole backbone
            stays in evaluation mode, as a linear probe wants it.
    """

    def __init__(self, checkpoint: str | None = None, encoder: str = 'momentum', **kwargs) -> None:
        super().__init__(**kwargs)
        quicken_blocks(self)
        self.checkpoint = checkpoint
        self.encoder = encoder

    def init_weights(self) -> None:
        """Initialise, then load the checkpoint.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file does not fit.
        """
        super().init_weights()
        if self.checkpoint:
            load_backbone(self, self.checkpoint, self.encoder)
        else:
            print_log(
                'The backbone starts from random weights: model.backbone.checkpoint is not set.',
                'current',
                logging.WARNING,
            )

    def train(self, mode: bool = True) -> None:
        """Set the mode; a wholly frozen backbone stays in evaluation mode."""
        super().train(mode and self.frozen_stages < self.num_layers)


def find_pretrained(init_cfg: dict | list | None) -> dict | None:
    """Return the config among those of ``init_cfg`` that names a checkpoint."""
    configs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return next((cfg for cfg in configs if cfg and cfg.get('type') == 'Pretrained'), None)


def check_heads(arch: dict | str) -> None:
    """Raise ``ValueError`` where the number of heads does not divide the width."""
    if isinstance(arch, dict) and arch['embed_dims'] % arch['num_heads']:
        raise ValueError(
            f'a width of {arch["embed_dims"]} cannot be split into {arch["num_heads"]} heads: '
            'change arch.embed_dims or arch.num_heads.'
        )


def embed_tokens(vit: VisionTransformer, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Embed patches and class token with their positions.

    Args:
        vit: mmpretrain's ViT, with or without a class token.
        images: ``(N, C, H, W)``.

    Returns:
        tuple: ``(N, T, D)`` tokens, the class token first, and the rows and columns of
        their map.
    """
    tokens, size = vit.patch_embed(images)  # (N, rows * columns, D)
    if vit.cls_token is not None:
        tokens = torch.cat([vit.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
    tokens = tokens + resize_pos_embed(
        vit.pos_embed,
        vit.patch_resolution,
        size,
        mode=vit.interpolate_mode,
        num_extra_tokens=vit.num_extra_tokens,
    )
    return vit.pre_norm(vit.drop_after_pos(tokens)), size
