# AdamW for 800 epochs at batch 512; everything is scheduled per iteration.
optim_wrapper = dict(
    type='OptimWrapper',
    # base lr 5e-4 per 256 images: 5e-4 * 512 / 256 = 1e-3
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.04),
    constructor='mmpatchmix.DecayGroupsConstructor',
)
param_scheduler = [
    dict(
        type='mmpatchmix.LinearWarmupLR',
        by_epoch=True,
        begin=0,
        end=100,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=100,
        end=800,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingWeightDecay',
        eta_min=0.4,
        by_epoch=True,
        begin=0,
        end=800,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800, val_interval=10)
auto_scale_lr = dict(base_batch_size=512, enable=False)
