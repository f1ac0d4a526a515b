"""Data sets and worker transforms that mmpretrain lacks."""

from .digits import Digits
from .image_folder import ImageFolder
from .multi_crop import MultiCrop, PackViews

__all__ = ['Digits', 'ImageFolder', 'MultiCrop', 'PackViews']
