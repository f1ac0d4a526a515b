"""Convert checkpoints to timm, Hugging Face, mmdet and ONNX, and prove that features stay equal."""
