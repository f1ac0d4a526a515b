"""Data sets and worker transforms that mmpretrain lacks."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)

from .augment_views import AugmentViews
from .digits import Digits
from .image_folder import ImageFolder
from .load_multi_crop import LoadMultiCrop
from .multi_crop import MultiCrop
from .packed_views import PackViews, unpack_views

__all__ = [
    'AugmentViews',
    'Digits',
    'ImageFolder',
    'LoadMultiCrop',
    'MultiCrop',
    'PackViews',
    'unpack_views',
]
