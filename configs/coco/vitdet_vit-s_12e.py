"""ViTDet on ViT-S/16, COCO, 12 epochs: as vitdet_vit-s_100e.py, an eighth of the time.

Hardware: meant for 8 GPUs of 40 GB with 8 images each (batch 64).
Command:  bash tools/dist_train.sh configs/coco/vitdet_vit-s_12e.py 8 --amp --cfg-options \
              train_dataloader.batch_size=8 \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
"""

_base_ = './vitdet_vit-s_100e.py'

train_dataloader = dict(dataset=dict(times=1))
train_cfg = dict(max_epochs=12, val_interval=1)
_base_.param_scheduler[1].update(end=12, milestones=[8, 11])
