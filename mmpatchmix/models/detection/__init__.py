"""Backbones, pyramids and heads for detection and segmentation with a pre-trained ViT.

The heads are defined if mmdet or mmseg is installed; pre-training needs neither.
"""

from importlib.util import find_spec

from mmpatchmix.models.detection.pyramid import SimpleFeaturePyramid, ViTPyramid
from mmpatchmix.models.detection.vit import DetectionViT, WindowedViT

if find_spec('mmdet') is not None:
    from mmpatchmix.models.detection.full_precision import (
        FullPrecisionRoIExtractor,
        FullPrecisionRPNHead,
    )

if find_spec('mmseg') is not None:
    from mmpatchmix.models.detection.linear_seg_head import LinearSegHead
