# Linear probe of a pre-trained ViT-S/2 on CIFAR-10, 100 epochs
# (https://arxiv.org/abs/2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 96.0 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/linear/vit-s_cifar10.py --cfg-options \
#       model.backbone.checkpoint=work_dirs/patchmix_vit-s_cifar10/epoch_800.pth
_base_ = './vit-s_in1k.py'

model = dict(
    data_preprocessor=dict(
        num_classes=10,
        to_rgb=False,  # mmpretrain's CIFAR data sets are RGB already
    ),
    backbone=dict(img_size=32, patch_size=2),
    head=dict(num_classes=10),
)

train_pipeline = [
    dict(type='RandomResizedCrop', scale=32, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='ResizeEdge', scale=36, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]
cifar10 = dict(_delete_=True, type='CIFAR10', data_root='data/cifar10')
train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    dataset=dict(split='train', pipeline=train_pipeline, **cifar10),
)
val_dataloader = dict(
    batch_size=512,
    num_workers=4,
    dataset=dict(split='test', pipeline=test_pipeline, test_mode=True, **cifar10),
)
test_dataloader = val_dataloader

# base lr 0.02 per 256 images: 0.02 * 512 / 256 = 0.04
optim_wrapper = dict(optimizer=dict(lr=0.04))
auto_scale_lr = dict(base_batch_size=512)
