# Linear probe of a pre-trained ViT-S/16 on ImageNet-1K, 100 epochs (arXiv 2306.12243).
#
# Meant for 4 GPUs x 256 images; the backbone is frozen, so small GPUs do. Paper: 77.4 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
# Another size: PATCHMIX_IMG_SIZE=160 before the command changes crops, test views and positions.
#
#   bash tools/dist_train.sh configs/linear/vit-s_in1k.py 4 --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
_base_ = ['../_base_/datasets/in1k.py', '../_base_/linear.py']

img_size = _base_.pop('img_size')
model = dict(backbone=dict(img_size=img_size))
crop = dict(type='RandomResizedCrop', scale=img_size, backend='pillow', interpolation='bicubic')
steps = [dict(type='LoadImageFromFile'), crop, *_base_.pop('after_crop')]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=steps))
val_dataloader = test_dataloader = dict(batch_size=256)
del img_size, crop, steps
