"""PatchMix contrastive pre-training of Vision Transformers (arXiv 2306.12243)."""

from importlib import import_module
from typing import Any

__version__ = '0.1.0'
__all__ = ['embed', 'load_backbone', 'pretrain']


def __getattr__(name: str) -> Any:
    """Import :mod:`mmpatchmix.api`, and with it torch, at the first use of one of its functions."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module('mmpatchmix.api'), name)
