# AdamW for 300 epochs at batch 1024; everything is scheduled per iteration.
optim_wrapper = dict(
    type='mmpatchmix.BF16OptimWrapper',
    enabled='auto',  # where the device computes in bfloat16; --amp and --no-amp overrule it
    # base lr 5e-4 per 256 images: 5e-4 * 1024 / 256 = 2e-3
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.04, fused=True),
    constructor='mmpatchmix.DecayGroupsConstructor',  # biases and 1-D parameters do not decay
)
schedule = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='mmpatchmix.LinearWarmupLR', begin=0, end=10, **schedule),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=10, end=300, **schedule),
    dict(type='CosineAnnealingWeightDecay', eta_min=0.4, begin=0, end=300, **schedule),
]
del schedule
train_cfg = dict(type='mmpatchmix.ExactTrainLoop', max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=1024, enable=False)
