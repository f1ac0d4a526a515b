# A checkpoint to continue from: a narrow ViT, trained with labels on the six animals of CIFAR-10.
#
# docs/own-images.md links the images; docs/continue.md has results.
#
#   python tools/train.py benchmarks/configs/continue_source.py \
#       --work-dir work_dirs/continuing/source
_base_ = '../../configs/_base_/classification.py'

model = dict(
    num_classes=6,
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=256),
        img_size=24,
        patch_size=4,
        drop_path_rate=0.0,
    ),
)
load = dict(type='LoadImageFromFile')
images = dict(type='mmpatchmix.ImageFolder', data_root='work_dirs/continuing/animals', labels=True)
loader = dict(batch_size=128, num_workers=0, collate_fn=dict(type='default_collate'))
crop = dict(type='RandomResizedCrop', scale=24, crop_ratio_range=(0.3, 1.0))
flip = dict(type='RandomFlip', prob=0.5, direction='horizontal')
steps = [load, crop, flip, dict(type='PackInputs')]
resize = dict(type='ResizeEdge', scale=27, backend='pillow', interpolation='bicubic')
view = [load, resize, dict(type='CenterCrop', crop_size=24), dict(type='PackInputs')]
train_dataloader = dict(
    **loader,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**images, split='train', pipeline=steps),
)
val_dataloader = test_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**images, split='val', test_mode=True, pipeline=view),
)
del load, images, loader, crop, flip, resize, steps, view

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
schedule = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='mmpatchmix.LinearWarmupLR', begin=0, end=1, **schedule),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, end=6, **schedule),
]
train_cfg = dict(max_epochs=6, val_interval=6)
del schedule
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(checkpoint=dict(save_best=None))
