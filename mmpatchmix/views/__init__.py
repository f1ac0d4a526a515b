"""The views of a batch: their layout in memory, and their photometric augmentation."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)
from mmpatchmix.views.layout import PackViews, allocate_views, unpack_views
from mmpatchmix.views.on_cpu import AugmentViews
from mmpatchmix.views.on_device import PhotometricAugment

__all__ = ['AugmentViews', 'PackViews', 'PhotometricAugment', 'allocate_views', 'unpack_views']
