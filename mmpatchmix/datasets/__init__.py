"""Data sets and worker transforms that mmpretrain lacks."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)

from .digits import Digits
from .image_folder import ImageFolder
from .multi_crop import MultiCrop, PackViews

__all__ = ['Digits', 'ImageFolder', 'MultiCrop', 'PackViews']
