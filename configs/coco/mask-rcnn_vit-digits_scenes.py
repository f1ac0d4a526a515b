# Mask R-CNN on 50 scenes of scikit-learn digits.
#
# Meant for a CPU core, 3 minutes. The scenes are made by examples/demo_coco.py, which trains this
# config from a backbone that saw scenes without annotations, and from random weights:
#
#   make demo-coco
_base_ = ['./mask-rcnn_vit-s_fpn_1x.py', '../_base_/datasets/digits_colours.py']

channels = 64
extractor = dict(out_channels=channels, featmap_strides=[4, 8, 16], finest_scale=28)
mask_channels = dict(in_channels=channels, conv_out_channels=channels)
model = dict(
    data_preprocessor=dict(mean=_base_.pop('mean'), std=_base_.pop('std'), pad_size_divisor=16),
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=32,
        patch_size=8,
        out_indices=[1, 2, 3],
        drop_path_rate=0.0,
    ),
    # Digits of 24 to 48 pixels need no coarse levels: strides 4, 8 and 16.
    neck=[
        dict(type='mmpatchmix.ViTPyramid', in_channels=96, patch_size=8, strides=(4, 8, 16)),
        dict(type='FPN', in_channels=[96] * 3, out_channels=channels, num_outs=3),
    ],
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=extractor,
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=extractor,
        mask_head=dict(num_classes=10, num_convs=2, **mask_channels),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)),
)

data_root = 'work_dirs/digit_scenes/data/'
loader = dict(num_workers=0, persistent_workers=False)
scenes = dict(data_root=data_root, metainfo=dict(classes=tuple('0123456789')))
train_dataloader = dict(
    **loader,
    batch_size=4,
    dataset=dict(
        **scenes,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(min_size=8),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = test_dataloader = dict(
    **loader,
    batch_size=8,
    dataset=dict(**scenes, ann_file='annotations/instances_val.json', data_prefix=dict(img='val/')),
)
# No change of size; mmdet wants the factor.
for dataloader in (_base_.val_dataloader, _base_.test_dataloader):
    dataloader.dataset.pipeline[1].scale = (128, 128)
val_evaluator = test_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
del channels, extractor, mask_channels, data_root, loader, scenes, dataloader

optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(layer_decay_rate=0.9),
    clip_grad=dict(max_norm=5.0),
)
# 24 epochs of 13 iterations
train_cfg = dict(max_epochs=24, val_interval=24)
schedule = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', begin=0, end=24, eta_min=1e-5, **schedule),
]
del schedule
auto_scale_lr = dict(base_batch_size=4)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=24, max_keep_ckpts=1))
