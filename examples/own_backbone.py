"""A backbone of your own: timm's ConvNeXt in the place of the ViT.

    PYTHONPATH=examples mmpatchmix train examples/own_backbone_digits.py

PatchMix asks little of a backbone: images (N, C, H, W) of every size that the crops have go in, a
tuple comes out whose last entry is (N, D). One call has several view groups in one batch, so it
must have no BatchNorm: its statistics would be those of all groups together. Patches of the mix
are cut out of the pixels and need no patches in the network.
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
