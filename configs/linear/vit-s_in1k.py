# Linear probe of a pre-trained ViT-S/16 on ImageNet-1K, 100 epochs
# (https://arxiv.org/abs/2306.12243).
#
# Meant for 4 GPUs x 256 images; the backbone is frozen, so small GPUs do. Paper: 77.4 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
#
#   bash tools/dist_train.sh configs/linear/vit-s_in1k.py 4 --cfg-options \
#       model.backbone.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
_base_ = ['../_base_/datasets/in1k_multi_crop.py', '../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='mmpatchmix.PretrainedViT',
        arch=dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536),
        img_size=224,
        patch_size=16,
        frozen_stages=12,  # all of them: no gradient, evaluation mode
        checkpoint=None,  # a pre-training checkpoint as it is, or a converted one
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='CrossEntropyLoss'),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=256)
test_dataloader = val_dataloader
val_cfg = dict(_delete_=True, type='ValLoop')
test_cfg = dict(_delete_=True, type='TestLoop')
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    # base lr 0.02 per 256 images: 0.02 * 1024 / 256 = 0.08
    optimizer=dict(type='SGD', lr=0.08, momentum=0.9, weight_decay=0.0),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=0,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)
auto_scale_lr = dict(base_batch_size=1024, enable=False)
default_hooks = dict(
    checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook', enable=False),
)
