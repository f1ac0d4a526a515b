# Fine-tuning of a pre-trained ViT-S/16 on ImageNet-1K, 100 epochs
# (https://arxiv.org/abs/2306.12243).
#
# Meant for 8 GPUs x 128 images. Paper: 82.8 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
# Two figures are logged: accuracy/top1 of the averaged weights, accuracy/top1_origin of
# the weights themselves.
#
#   bash tools/dist_train.sh configs/finetune/vit-s_in1k.py 8 --amp --cfg-options \
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
        drop_path_rate=0.1,
        checkpoint=None,  # a pre-training checkpoint as it is, or a converted one
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for each batch, with equal chance.
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
        probs=[0.5, 0.5],
    ),
)

rand_augment = dict(
    type='RandAugment',  # m9, mstd 0.5, inc 1
    policies='timm_increasing',
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),  # the mean, as BGR
)
random_erasing = dict(
    type='RandomErasing',
    erase_prob=0.25,
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=[103.53, 116.28, 123.675],
    fill_std=[57.375, 57.12, 58.395],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    rand_augment,
    random_erasing,
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_cfg = dict(_delete_=True, type='ValLoop')
test_cfg = dict(_delete_=True, type='TestLoop')
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    # base lr 5e-4 per 256 images: 5e-4 * 1024 / 256 = 2e-3
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.75,
        flat_decay_mult=0.0,  # biases and norms
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=10,
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
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=4e-5,  # the share that is replaced: 1 - 0.99996
        priority='ABOVE_NORMAL',
        evaluate_on_ema=True,
        evaluate_on_origin=True,
    )
]
