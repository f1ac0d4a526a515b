# PatchMix on scikit-learn's 1,797 handwritten digits: the demo, for a CPU.
#
# Meant for 2 CPU cores, 3 to 6 minutes. No paper has figures for it. Digits are easy: kNN
# on raw pixels finds about 98 % already. What the demo shows is how far the features come
# without any label: from about 69 % untrained to 95 % and more.
#
#   python tools/train.py configs/patchmix_vit-digits.py
_base_ = ['./_base_/models/patchmix_vit-s16.py', './_base_/pretraining.py']

# -- model: 32x32 pixels in 8x8 patches are 16 tokens
model = dict(
    data_preprocessor=dict(
        patch_size=8,
        mean=[79.6, 79.6, 79.6],  # of the training images, enlarged
        std=[90.8, 90.8, 90.8],
        augment=dict(_delete_=True),  # grey strokes: neither colour nor blur nor mirrored digits
    ),
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=32,
        patch_size=8,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=96, hid_channels=512, out_channels=128),
    head=dict(predictor=dict(in_channels=128, hid_channels=512, out_channels=128)),
)

# -- data: one fixed, stratified split
train_dataloader = dict(
    batch_size=128,
    num_workers=0,  # the crops of 128 digits take less than starting a worker
    persistent_workers=False,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpatchmix.Digits',
        split='train',
        pipeline=[
            dict(type='mmpatchmix.MultiCrop', global_size=32, global_scale=(0.4, 1.0)),
            dict(type='mmpatchmix.PackViews'),
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
val_cfg = dict(
    type='mmpatchmix.KNNLoop',
    bank_dataloader=dict(
        batch_size=256,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='mmpatchmix.Digits',
            split='train',
            pipeline=[dict(type='PackInputs')],
            test_mode=True,
        ),
    ),
    pixel_baseline=True,
)
val_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10,))
test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator

# -- schedule: 70 epochs of 11 iterations
optim_wrapper = dict(
    type='OptimWrapper',
    # base lr 6e-3 per 256 images: 6e-3 * 128 / 256 = 3e-3. The network is small and the run
    # short: the rate is high, the weight decay stays low.
    optimizer=dict(type='AdamW', lr=3e-3, betas=(0.9, 0.999), weight_decay=0.04),
    constructor='mmpatchmix.DecayGroupsConstructor',
)
param_scheduler = [
    dict(
        type='mmpatchmix.LinearWarmupLR', by_epoch=True, begin=0, end=7, convert_to_iter_based=True
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=7,
        end=70,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=70, val_interval=10)
auto_scale_lr = dict(base_batch_size=128, enable=False)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=11),
    checkpoint=dict(interval=20),
    # 0.996 would remember 250 iterations, a third of this run; 0.95 remembers 20.
    momentum=dict(momentum=0.95),
    report=dict(evaluate_untrained=True),
)
log_processor = dict(window_size=11)
