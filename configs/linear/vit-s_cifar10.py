# Linear probe of a pre-trained ViT-S/2 on CIFAR-10, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 96.0 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
# Another size: PATCHMIX_IMG_SIZE=48 before the command changes crops, test views and positions.
#
#   python tools/train.py configs/linear/vit-s_cifar10.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_cifar10/epoch_800.pth
_base_ = ['../_base_/datasets/cifar10.py', '../_base_/linear.py']

img_size = _base_.pop('img_size')
model = dict(
    num_classes=10,
    data_preprocessor=dict(to_rgb=False),  # mmpretrain's CIFAR data sets are RGB already
    backbone=dict(img_size=img_size, patch_size=2),
)
crop = dict(type='RandomResizedCrop', scale=img_size, backend='pillow', interpolation='bicubic')
train_dataloader = dict(dataset=dict(pipeline=[crop, *_base_.pop('after_crop')]))
del img_size, crop

# base lr 0.02 per 256 images: 0.02 * 512 / 256 = 0.04
optim_wrapper = dict(optimizer=dict(lr=0.04))
auto_scale_lr = dict(base_batch_size=512)
