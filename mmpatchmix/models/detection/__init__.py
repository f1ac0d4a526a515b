"""What plain mmpretrain and mmdet lack for detection with a pre-trained ViT.

Needs mmdet only where it subclasses it, so pre-training works without.
"""

from importlib.util import find_spec

from mmpatchmix.models.detection.pyramid import SimpleFeaturePyramid, ViTPyramid
from mmpatchmix.models.detection.vit import DetectionViT, WindowedViT

__all__ = [
    'DetectionViT',
    'SimpleFeaturePyramid',
    'ViTPyramid',
    'WindowedViT',
]

if find_spec('mmdet') is not None:
    from mmpatchmix.models.detection.pyramid import FullPrecisionRoIExtractor, FullPrecisionRPNHead

    __all__ += ['FullPrecisionRPNHead', 'FullPrecisionRoIExtractor']
