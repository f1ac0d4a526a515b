# CIFAR-10, downloaded to data/cifar10 if missing. Configs add the training transforms.

# Pixels per side of crops, test views and the ViT's position embedding: change them all here,
# or for one run with `PATCHMIX_IMG_SIZE=48 python tools/train.py ...`.
img_size = int('{{$PATCHMIX_IMG_SIZE:32}}')

resize = dict(type='mmpatchmix.ResizeEdge', backend='pillow', interpolation='bicubic')
loader = dict(batch_size=512, pin_memory=True, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    **loader,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CIFAR10', data_root='data/cifar10', split='train'),
)
val_dataloader = dict(
    **loader,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        pipeline=[
            dict(**resize, scale=img_size * 256 // 224, edge='short'),
            dict(type='CenterCrop', crop_size=img_size),
            dict(type='PackInputs'),
        ],
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
del resize, loader
