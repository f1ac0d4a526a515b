"""Backbones and pyramids for detection and segmentation with a pre-trained ViT.

The heads need mmdet or mmseg; the configs import them by ``custom_imports``.
"""

from mmpatchmix.models.detection.pyramid import SimpleFeaturePyramid, ViTPyramid
from mmpatchmix.models.detection.vit import DetectionViT, WindowedViT
