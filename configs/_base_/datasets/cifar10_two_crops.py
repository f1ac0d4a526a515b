# CIFAR-10 (downloaded to data/cifar10 when it is not there), 2 crops of 32 pixels.
data_root = 'data/cifar10'

train_pipeline = [
    dict(type='mmpatchmix.MultiCrop', global_size=32, global_scale=(0.1, 1.0)),
    dict(type='mmpatchmix.PackViews'),
]
test_pipeline = [
    dict(
        type='ResizeEdge',
        scale=36,  # 32 * 256 / 224
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CIFAR10', data_root=data_root, split='train', pipeline=train_pipeline),
)
# Online kNN: the training images, seen as test views, vote on the held-out ones.
val_dataloader = dict(
    batch_size=512,
    num_workers=4,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CIFAR10', data_root=data_root, split='test', pipeline=test_pipeline, test_mode=True
    ),
)
val_cfg = dict(
    type='mmpatchmix.KNNLoop',
    bank_dataloader=dict(
        batch_size=512,
        num_workers=4,
        pin_memory=True,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CIFAR10',
            data_root=data_root,
            split='train',
            pipeline=test_pipeline,
            test_mode=True,
        ),
    ),
)
val_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))

test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator
