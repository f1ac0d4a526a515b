"""Photometric augmentation of the views: settings, random numbers, and how they are applied."""

from mmpatchmix import registry  # prepares the stack before it is imported
from mmpatchmix.models.augment.view_augment import ViewAugment
