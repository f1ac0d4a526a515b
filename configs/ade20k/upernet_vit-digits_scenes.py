# UPerNet on 200 scenes of one of scikit-learn's digits each, anywhere in 32x32 pixels.
#
# Meant for a CPU core, one or two minutes. The scenes are made by examples/demo_ade20k.py, which
# trains this config from a backbone that saw 2,000 scenes without labels, and from random weights,
# three times each:
#
#   make demo-ade20k
_base_ = ['./upernet_vit-s_160k.py', '../_base_/datasets/digits_colours.py']

head = dict(num_classes=11, channels=32)  # background and ten digits
model = dict(
    data_preprocessor=dict(mean=_base_.pop('mean'), std=_base_.pop('std'), size=(32, 32)),
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=32,
        patch_size=8,
        out_indices=[1, 2, 3],
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=96, patch_size=8, strides=(2, 4, 8)),
    decode_head=dict(in_channels=[96] * 3, in_index=[0, 1, 2], pool_scales=(1, 2, 4), **head),
    auxiliary_head=dict(in_channels=96, **head),
    test_cfg=dict(_delete_=True, mode='whole'),
)
scenes = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root='work_dirs/segmentation/data/',
    metainfo=dict(classes=('background', *'0123456789'), palette=[[25 * i] * 3 for i in range(11)]),
    img_suffix='.png',
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ],
)
loader = dict(num_workers=0, persistent_workers=False)
prefix = dict(img_path='train', seg_map_path='labels/train')
train_dataloader = dict(**loader, batch_size=16, dataset=dict(**scenes, data_prefix=prefix))
prefix = dict(img_path='val', seg_map_path='labels/val')
val_dataloader = test_dataloader = dict(**loader, dataset=dict(**scenes, data_prefix=prefix))
del head, scenes, loader, prefix

# A high rate for the narrow heads, and a low one for the backbone.
optim_wrapper = dict(optimizer=dict(lr=1e-2), paramwise_cfg=dict(layer_decay_rate=0.3))
# 40 epochs of 13 iterations
_base_.param_scheduler[0].end = 50
_base_.param_scheduler[1].end = 40
train_cfg = dict(max_epochs=40, val_interval=40)
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=40, max_keep_ckpts=1))
