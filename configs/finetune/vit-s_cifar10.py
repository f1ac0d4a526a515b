# Fine-tuning of a pre-trained ViT-S/2 on CIFAR-10, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 98.1 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
# Another size: PATCHMIX_IMG_SIZE=48 before the command changes crops, test views and positions.
#
#   python tools/train.py configs/finetune/vit-s_cifar10.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_cifar10/epoch_800.pth
_base_ = ['../_base_/datasets/cifar10.py', '../_base_/finetune.py']

img_size, after_crop = _base_.pop('img_size'), _base_.pop('after_crop')
model = dict(
    num_classes=10,
    data_preprocessor=dict(to_rgb=False),  # mmpretrain's CIFAR data sets are RGB already
    backbone=dict(img_size=img_size, patch_size=2),
)
# The images are RGB, so the colours that fill are RGB too.
after_crop[1]['hparams']['pad_val'] = [124, 116, 104]
after_crop[2].update(fill_color=[123.675, 116.28, 103.53], fill_std=[58.395, 57.12, 57.375])
resize = dict(type='ResizeEdge', scale=img_size, backend='pillow', interpolation='bicubic')
crop = dict(type='RandomCrop', crop_size=img_size, padding=img_size // 8)
train_dataloader = dict(dataset=dict(pipeline=[resize, crop, *after_crop]))
del img_size, after_crop, resize, crop

# base lr 5e-4 per 256 images: 5e-4 * 512 / 256 = 1e-3
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=512)
