"""The Vision Transformer of PatchMix: mmpretrain's, initialised as in MoCo v3."""

import math

import torch
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.utils import to_2tuple
from torch import nn

from mmpatchmix.registry import MODELS


@MODELS.register_module()
class PatchMixViT(VisionTransformer):
    """mmpretrain's ViT with the initialisation of MoCo v3.

    Linear layers are xavier-uniform, query, key and value being three matrices
    of their own; the patch embedding is xavier-uniform and trained; the class
    token has a standard deviation of 1e-6. Unlike in MoCo v3 the position
    embedding is learned, from a truncated normal distribution of 0.02.

    Parameter names are those of mmpretrain's ViT, so weights travel both ways.
    Give ``arch`` as a dict: mmpretrain's ``small`` (768 wide, 8 layers) and
    ``deit-small`` (6 heads) are other networks than the paper's.

    Sources: https://arxiv.org/abs/2306.12243 and MoCo v3,
    https://arxiv.org/abs/2104.02057.

    Args:
        **kwargs: Those of :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        ValueError: If the patch size does not divide the image size, or the
            number of heads does not divide the width.
    """

    def __init__(self, arch, img_size: int | tuple = 224, patch_size: int = 16, **kwargs) -> None:
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
        self.patch_size = patch_size

    def init_weights(self) -> None:
        """Initialise as described above, or load what ``init_cfg`` names."""
        super().init_weights()  # the position embedding: truncated normal, 0.02
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
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

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
        return super().forward(x)
