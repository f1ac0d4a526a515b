"""Backbones, pyramids and heads for detection with a pre-trained ViT.

The heads are defined if mmdet is installed; pre-training does not need it.
"""

from importlib.util import find_spec

from mmpatchmix.models.detection.pyramid import SimpleFeaturePyramid, ViTPyramid
from mmpatchmix.models.detection.vit import DetectionViT, WindowedViT

if find_spec('mmdet') is not None:
    from mmpatchmix.models.detection.full_precision import (
        FullPrecisionRoIExtractor,
        FullPrecisionRPNHead,
    )
