"""ViTDet on ViT-B/16 with relative position: vitdet_vit-b_100e.py and one switch."""

_base_ = './vitdet_vit-b_100e.py'

model = dict(backbone=dict(use_rel_pos=True))
