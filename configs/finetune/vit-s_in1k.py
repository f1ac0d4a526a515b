# Fine-tuning of a pre-trained ViT-S/16 on ImageNet-1K, 100 epochs (arXiv 2306.12243).
#
# Meant for 8 GPUs x 128 images. Paper: 82.8 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
# Two figures are logged: accuracy/top1 of the averaged weights, accuracy/top1_origin of
# the weights themselves.
# Another size: PATCHMIX_IMG_SIZE=160 before the command changes crops, test views and positions.
#
#   bash tools/dist_train.sh configs/finetune/vit-s_in1k.py 8 --amp --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
_base_ = ['../_base_/datasets/in1k.py', '../_base_/finetune.py']

img_size = _base_.pop('img_size')
model = dict(backbone=dict(img_size=img_size))
crop = dict(type='RandomResizedCrop', scale=img_size, backend='pillow', interpolation='bicubic')
steps = [dict(type='LoadImageFromFile'), crop, *_base_.pop('after_crop')]
train_dataloader = dict(dataset=dict(pipeline=steps))
del img_size, crop, steps
