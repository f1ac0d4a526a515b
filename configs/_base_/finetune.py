# Fine-tuning: all layers are trained, the first ones at lower rates, on augmented images.
_base_ = ['./classification.py', './augmented.py']

model = dict(
    backbone=dict(drop_path_rate=0.1),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    # One of the two for each batch, with equal chance.
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
        probs=[0.5, 0.5],
    ),
)

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
schedule = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=10, **schedule),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=10, end=100, **schedule),
]
del schedule
# `momentum` (1 - 0.99996), at least 5 / (5 + iterations), is replaced: by the last fifth at first.
ema = dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=4e-5, gamma=5)
custom_hooks = [dict(**ema, priority='ABOVE_NORMAL', evaluate_on_ema=True, evaluate_on_origin=True)]
del ema
