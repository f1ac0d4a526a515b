"""Heads of mmdet that keep boxes in float32 under autocast: the only file here that needs mmdet.

bfloat16 has 8 significant bits, so coordinates near 1,000 would move in steps of 4 to 8 pixels.
"""

from mmdet.models import RPNHead, SingleRoIExtractor
from torch import Tensor

from mmpatchmix.registry import MODELS


@MODELS.register_module()
class FullPrecisionRPNHead(RPNHead):
    """mmdet's RPN head with float32 scores and box deltas, hence float32 anchors."""

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score one level ``(N, C, H, W)``: ``(N, A, H, W)`` and deltas ``(N, 4A, H, W)``."""
        scores, deltas = super().forward_single(x)
        return scores.float(), deltas.float()


@MODELS.register_module()
class FullPrecisionRoIExtractor(SingleRoIExtractor):
    """mmdet's RoI extractor with float32 boxes and pooling."""

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Pool ``rois`` ``(R, 5)`` from maps ``(N, C, H, W)`` into ``(R, C, h, w)``, float32."""
        return super().forward(tuple(map(Tensor.float, feats)), rois, roi_scale_factor)
