# ImageNet-1K: data/imagenet/{train,val}/CLASS/*.JPEG. Configs add the training transforms.

# Pixels per side of crops, test views and the ViT's position embedding: change them all here,
# or for one run with `PATCHMIX_IMG_SIZE=160 python tools/train.py ...`.
img_size = int('{{$PATCHMIX_IMG_SIZE:224}}')

resize = dict(type='mmpatchmix.ResizeEdge', backend='pillow', interpolation='bicubic')
loader = dict(
    batch_size=128,  # per GPU: 8 GPUs make 1024
    num_workers=10,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
)
folder = dict(type='mmpatchmix.ImageFolder', data_root='data/imagenet', labels=True)
train_dataloader = dict(
    **loader,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**folder, data_prefix='train'),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **folder,
        data_prefix='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(**resize, scale=img_size * 256 // 224, edge='short'),
            dict(type='CenterCrop', crop_size=img_size),
            dict(type='PackInputs'),
        ],
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
del resize, loader, folder
