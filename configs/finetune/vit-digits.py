# Two epochs of fine-tuning on scikit-learn's digits: the last step of `make evaluate`.
#
# Meant for 2 CPU cores, a few seconds.
#
#   python tools/train.py configs/finetune/vit-digits.py --cfg-options \
#       model.backbone.checkpoint=work_dirs/patchmix_vit-digits/epoch_70.pth
_base_ = '../_base_/runtime.py'

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=10, mean=[77.7, 77.7, 77.7], std=[95.9, 95.9, 95.9], to_rgb=True
    ),
    backbone=dict(
        type='mmpatchmix.PretrainedViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=32,
        patch_size=8,
        checkpoint=None,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)

train_dataloader = dict(
    batch_size=16,  # 90 iterations an epoch
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpatchmix.Digits',
        split='train',
        pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=2),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpatchmix.Digits',
        split='test',
        pipeline=[dict(type='PackInputs')],
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.75,
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
auto_scale_lr = dict(base_batch_size=16, enable=False)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=45),
    checkpoint=dict(interval=1),
    visualization=dict(type='VisualizationHook', enable=False),
)
