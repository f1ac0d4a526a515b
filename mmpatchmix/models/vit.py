"""The Vision Transformer of pre-training, linear probes and fine-tuning."""

import logging
import math

import torch
from mmengine.logging import print_log
from mmengine.model import ModuleList
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed, to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpatchmix.models.load_backbone import load_backbone
from mmpatchmix.models.vit_blocks import Block
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class PatchMixViT(VisionTransformer):
    """mmpretrain's ViT with the initialisation of MoCo v3, or with all weights of a checkpoint.

    Linear layers are xavier-uniform, with query, key and value as three matrices, and so is the
    patch embedding, which is trained; the class token has a standard deviation of 1e-6. Unlike in
    MoCo v3 (https://arxiv.org/abs/2104.02057) the position embedding is learned, from a truncated
    normal distribution of 0.02.

    If the class token of the last block is the only output, the last block computes keys and
    values of all tokens, but query, projection and feed-forward of the class token alone. The
    result is the same with a fifteenth less arithmetic. ``ValueError`` if the image cannot be split
    into patches, or the width into heads.

    Args:
        arch: Width, layers, heads and feed-forward width as a dict: mmpretrain's ``small`` (768
            wide, 8 layers) and ``deit-small`` (6 heads) are other networks than the paper's.
        img_size: Side in pixels of the images for which the position embedding is learned.
        patch_size: Side of a patch, in pixels.
        with_cp: Recompute the blocks in the backward instead of storing their activations.
        num_registers: Tokens between class token and patch tokens, without positions and in no
            output (DINOv2 with registers, https://arxiv.org/abs/2309.16588).
        **kwargs: Those of :class:`mmpretrain.models.VisionTransformer`. Unlike there,
            ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` takes any checkpoint that
            :func:`mmpatchmix.checkpoints.read_backbone` reads and loads all of it or raises;
            ``prefix=...`` selects one of several encoders, by default the momentum encoder. A
            backbone with as many ``frozen_stages`` as layers, or more, stays in evaluation mode.
    """

    # Key prefixes of a checkpoint that are not loaded, and key suffixes that it may lack.
    dropped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    pads_images = False  # whether images may have sides that the patch size does not divide

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
        if isinstance(arch, dict) and arch['embed_dims'] % arch['num_heads']:
            raise ValueError(
                f'a width of {arch["embed_dims"]} cannot be split into {arch["num_heads"]} heads: '
                'change arch.embed_dims or arch.num_heads.'
            )
        super().__init__(arch=arch, img_size=img_size, patch_size=patch_size, **kwargs)
        self.layers = ModuleList(Block(layer) for layer in self.layers)
        self.patch_size, self.with_cp, self.register_tokens = patch_size, with_cp, None
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, self.embed_dims))
            self.register_tokens.requires_grad = self.frozen_stages <= 0

    def init_weights(self) -> None:
        """Draw weights, or load the checkpoint of ``init_cfg``; ``ValueError`` if it is unfit."""
        pretrained = find_pretrained(self.init_cfg)
        if pretrained is None:
            self._draw_weights()
            return
        # mmengine would load the keys that fit and only log the others.
        init_cfg, self.init_cfg = self.init_cfg, None
        self._draw_weights()
        self.init_cfg = init_cfg
        file, prefix = pretrained['checkpoint'], pretrained.get('prefix')
        if file:
            load_backbone(self, file, prefix, self.dropped, self.new)
        else:
            warn_of_random_weights()

    def _draw_weights(self) -> None:
        super().init_weights()  # the position embedding: truncated normal, 0.02
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                matrices = module.weight.chunk(3 if name.endswith('attn.qkv') else 1)
                for matrix in matrices:
                    nn.init.xavier_uniform_(matrix)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.patch_embed.projection
        bound = math.sqrt(6.0 / (projection.weight[0].numel() + self.embed_dims))
        nn.init.uniform_(projection.weight, -bound, bound)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        for tokens in filter(torch.is_tensor, (self.cls_token, self.register_tokens)):
            nn.init.normal_(tokens, std=1e-6)

    def _freeze_stages(self) -> None:
        self.frozen_stages = min(self.frozen_stages, self.num_layers)
        super()._freeze_stages()

    def train(self, mode: bool = True) -> None:
        """Set the mode; frozen blocks, or a completely frozen backbone, stay in evaluation mode."""
        super().train(mode and self.frozen_stages < self.num_layers)
        for block in self.layers[: max(self.frozen_stages, 0)]:
            block.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode images ``(N, C, H, W)``, interpolating positions if they are not of ``img_size``.

        Returns one output per index of ``out_indices``; with the default ``out_type`` a class
        token, ``(N, D)``. ``ValueError`` if the patch size does not divide the image.
        """
        tokens, size = self._embed(x)
        last = self.num_layers - 1
        class_token_only = self.out_type == 'cls_token' and list(self.out_indices) == [last]
        outputs = []
        for index, block in enumerate(self.layers):
            arguments = tokens, class_token_only and index == last
            if self.with_cp and torch.is_grad_enabled():
                tokens = checkpoint(block, *arguments, use_reentrant=False)
            else:
                tokens = block(*arguments)
            if index == last and self.final_norm:
                tokens = self.ln1(tokens)
            if index in self.out_indices:
                outputs.append(self._format_output(self._remove_registers(tokens), size))
        return tuple(outputs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths; see mmpretrain's."""
        if param_name == f'{prefix}register_tokens':
            param_name = f'{prefix}cls_token'
        return super().get_layer_depth(param_name, prefix)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens with positions, ``(N, T, D)``, and the rows and columns of patches."""
        if not self.pads_images:
            check_divisible(images, self.patch_size)
        tokens, size = self.patch_embed(images)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        options = self.interpolate_mode, self.num_extra_tokens
        position = resize_pos_embed(self.pos_embed, self.patch_resolution, size, *options)
        tokens = self.pre_norm(self.drop_after_pos(tokens + position))
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return tokens, size

    def _remove_registers(self, tokens: Tensor) -> Tensor:
        if self.register_tokens is None or tokens.shape[1] == 1:  # the class token alone
            return tokens
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.register_tokens.shape[1] :]], dim=1)


def find_pretrained(init_cfg: dict | list | None) -> dict | None:
    """Return the config of ``init_cfg`` that names a checkpoint."""
    configs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return next((cfg for cfg in configs if cfg and cfg.get('type') == 'Pretrained'), None)


def warn_of_random_weights() -> None:
    """Log that ``init_cfg`` names no checkpoint."""
    about = 'random weights: model.backbone.init_cfg.checkpoint is not set.'
    print_log(f'The backbone starts from {about}', 'current', logging.WARNING)


def check_divisible(images: Tensor, patch_size: int) -> None:
    """Raise ``ValueError`` if the patch size does not divide images ``(N, C, H, W)``."""
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f'a view of {height}x{width} pixels is not divisible by the patch size {patch_size} of '
            'the ViT: change the crop size of the pipeline.'
        )
