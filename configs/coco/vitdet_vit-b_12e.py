"""ViTDet on ViT-B/16, COCO, 12 epochs: as vitdet_vit-b_100e.py, an eighth of the time."""

_base_ = './vitdet_vit-b_100e.py'

train_dataloader = dict(dataset=dict(times=1))
train_cfg = dict(max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
