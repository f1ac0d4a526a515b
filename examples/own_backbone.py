"""A custom backbone: timm's ConvNeXt instead of the ViT.

    PYTHONPATH=examples mmpatchmix train examples/own_backbone_digits.py

A backbone takes images (N, C, H, W) of each crop size and returns a tuple whose last entry is (N,
D). One call contains several view groups, so the backbone must have no BatchNorm, whose statistics
would cover all groups together. Patches of the mix are cut from the pixels; the network needs no
patches.
"""

import timm
from mmengine.model import BaseModule
from torch import Tensor

from mmpatchmix.registry import MODELS


@MODELS.register_module()
class TimmFeatures(BaseModule):
    """Any network of timm without BatchNorm, as a backbone.

    Args:
        name: Of the network, such as ``'convnext_atto'``.
        **settings: Of ``timm.create_model``.
    """

    def __init__(self, name: str, **settings) -> None:
        super().__init__()
        self.network = timm.create_model(name, num_classes=0, **settings)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Encode ``(N, C, H, W)`` as ``(N, D)``, pooled over the image."""
        return (self.network(images),)
