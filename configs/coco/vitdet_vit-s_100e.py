"""ViTDet: Mask R-CNN on ViT-S/16 with windowed attention, COCO, 100 epochs.

Paper:    ViTDet, arXiv 2203.16527; ViT-S is not in it, its recipe is ViT-B's.
Hardware: meant for 8 GPUs of 40 GB with 8 images each (batch 64), --amp.
Command:  bash tools/dist_train.sh configs/coco/vitdet_vit-s_100e.py 8 --amp --cfg-options \
              train_dataloader.batch_size=8 \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
"""

_base_ = './vitdet_vit-b_100e.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=384, feedforward_channels=1536)),
    neck=dict(in_channels=384),
)
