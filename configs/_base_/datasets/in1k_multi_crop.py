# ImageNet-1K, 2 crops of 224 and 8 of 96 pixels. Workers decode and crop; what is
# photometric happens in the data preprocessor. data/imagenet/{train,val}/CLASS/*.JPEG
data_root = 'data/imagenet'

train_pipeline = [
    dict(
        type='mmpatchmix.LoadMultiCrop',
        global_size=224,
        global_scale=(0.35, 1.0),
        num_local=8,
        local_size=96,
        local_scale=(0.05, 0.35),
    ),
    dict(type='mmpatchmix.PackViews'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge',
        scale=256,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,  # per GPU: 8 GPUs make 1024
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpatchmix.ImageFolder',
        data_root=data_root,
        data_prefix='train',
        labels=True,
        pipeline=train_pipeline,
    ),
)
# Online kNN: the training images, seen as test views, vote on the held-out ones.
val_dataloader = dict(
    batch_size=128,
    num_workers=10,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpatchmix.ImageFolder',
        data_root=data_root,
        data_prefix='val',
        labels=True,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_cfg = dict(
    type='mmpatchmix.KNNLoop',
    bank_dataloader=dict(
        batch_size=128,
        num_workers=10,
        pin_memory=True,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='mmpatchmix.ImageFolder',
            data_root=data_root,
            data_prefix='train',
            labels=True,
            pipeline=test_pipeline,
            test_mode=True,
        ),
    ),
)
val_evaluator = dict(type='mmpatchmix.KNNMetric', num_neighbors=(10, 20, 100, 200))

test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator
