"""ViTDet on ViT-S/16 with relative position: vitdet_vit-s_12e.py and one switch."""

_base_ = './vitdet_vit-s_12e.py'

model = dict(backbone=dict(use_rel_pos=True))
