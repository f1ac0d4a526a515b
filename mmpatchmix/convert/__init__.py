"""Convert checkpoints to timm, Hugging Face, mmdet and ONNX, and prove that features stay equal."""

from mmpatchmix import registry  # prepares the stack before it is imported
