"""The head of linear probes for segmentation: the only file here that needs mmseg."""

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from mmpatchmix.registry import MODELS


@MODELS.register_module()
class LinearSegHead(BaseDecodeHead):
    """BatchNorm and a 1x1 convolution, as in DINOv2 (https://arxiv.org/abs/2304.07193)."""

    def __init__(self, in_channels: int, num_classes: int, **kwargs) -> None:
        sizes = dict(in_channels=in_channels, channels=in_channels, num_classes=num_classes)
        super().__init__(**sizes, dropout_ratio=0.0, align_corners=False, **kwargs)
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Classify the cells of the last map, ``(N, C, H, W)``: ``(N, classes, H, W)``."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
