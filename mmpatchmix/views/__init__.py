"""The views of a batch: how they are collated, and their photometric augmentation."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)
from mmpatchmix.views.augment import ViewAugment
from mmpatchmix.views.pack_views import PackViews, channels_first

__all__ = ['PackViews', 'ViewAugment', 'channels_first']
