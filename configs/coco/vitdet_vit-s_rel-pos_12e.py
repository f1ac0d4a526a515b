"""ViTDet on ViT-S/16 with relative position: vitdet_vit-s_12e.py and one switch.

Hardware: meant for 8 GPUs of 40 GB with 8 images each (batch 64).
Command:  bash tools/dist_train.sh configs/coco/vitdet_vit-s_rel-pos_12e.py 8 --amp --cfg-options \
              train_dataloader.batch_size=8 \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
"""

_base_ = './vitdet_vit-s_12e.py'

model = dict(backbone=dict(use_rel_pos=True))
