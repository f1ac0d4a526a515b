"""Data sets and the crops of the workers."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)
from mmpatchmix.datasets.custom_dataset import CustomDataset
from mmpatchmix.datasets.digits import Digits
from mmpatchmix.datasets.image_folder import ImageFolder
from mmpatchmix.datasets.load_any_image import LoadAnyImage
from mmpatchmix.datasets.load_multi_crop import LoadMultiCrop
from mmpatchmix.datasets.multi_crop import MultiCrop
from mmpatchmix.datasets.resize_centre import ResizeCentre
from mmpatchmix.datasets.sharded_images import ShardedImages
from mmpatchmix.datasets.transform_views import TransformViews

__all__ = [
    'CustomDataset',
    'Digits',
    'ImageFolder',
    'LoadAnyImage',
    'LoadMultiCrop',
    'MultiCrop',
    'ResizeCentre',
    'ShardedImages',
    'TransformViews',
]
