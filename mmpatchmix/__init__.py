"""PatchMix contrastive pre-training of Vision Transformers (arXiv 2306.12243)."""

__version__ = '0.1.0'
