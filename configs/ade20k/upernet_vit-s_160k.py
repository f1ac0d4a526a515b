"""UPerNet with a plain ViT-S/16 on ADE20K: 160,000 iterations of 16 images, 512x512 pixels.

Recipe:   that of MAE and BEiT, as in mmsegmentation, with the pyramid of our detection recipes.
Hardware: meant for 8 GPUs of 24 GB or more, 2 images each (batch 16).
Command:  bash tools/dist_train.sh configs/ade20k/upernet_vit-s_160k.py 8 --cfg-options \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
Data:     data/ade/ADEChallengeData2016/{images,annotations}/{training,validation}
"""

_base_ = '../_base_/runtime_mmseg.py'

# BatchNorm is synchronised over the GPUs by sync_bn.
head = dict(num_classes=150, norm_cfg=dict(type='BN'), align_corners=False)
size = (512, 512)
colours = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=size, **colours),
    backbone=dict(
        type='mmpatchmix.DetectionViT',
        arch=dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536),
        img_size=512,
        patch_size=16,
        out_indices=[3, 5, 7, 11],  # blocks 4, 6, 8 and 12
        drop_path_rate=0.1,
        # checkpoint: a pre-training checkpoint or a converted backbone
        init_cfg=dict(type='Pretrained', checkpoint=None),
    ),
    neck=dict(type='mmpatchmix.ViTPyramid', in_channels=384),
    decode_head=dict(
        type='UPerHead', in_channels=[384] * 4, in_index=[0, 1, 2, 3], channels=512, **head
    ),
    auxiliary_head=dict(
        dict(type='FCNHead', in_channels=384, in_index=2, channels=256, **head),
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
    ),
    test_cfg=dict(mode='slide', crop_size=size, stride=(341, 341)),
)

load, annotations = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
resize = dict(scale=(2048, 512), keep_ratio=True)
train_pipeline = [
    load,
    annotations,
    dict(type='RandomResize', ratio_range=(0.5, 2.0), **resize),
    dict(type='RandomCrop', crop_size=size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [load, dict(type='Resize', **resize), annotations, dict(type='PackSegInputs')]
train, test = ('training', 2, train_pipeline), ('validation', 1, test_pipeline)
train_dataloader, val_dataloader = (
    dict(
        batch_size=batch_size,
        num_workers=4,
        persistent_workers=True,
        sampler=dict(type='DefaultSampler', shuffle=split == 'training'),
        dataset=dict(
            type='ADE20KDataset',
            data_root='data/ade/ADEChallengeData2016',
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            pipeline=pipeline,
        ),
    )
    for split, batch_size, pipeline in (train, test)
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
del head, size, colours, load, annotations, resize, train, test, train_pipeline, test_pipeline

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmpatchmix.LayerDecayConstructor',
    # lr for a batch of 16 = 8 GPUs x 2; --auto-scale-lr adapts it to another batch.
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.65, flat_decay_mult=0.0),
)
# 20,210 images / 16 = 1,264 iterations per epoch: 127 epochs are 160,528.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=127, convert_to_iter_based=True),
]
train_cfg = dict(type='mmpatchmix.ExactTrainLoop', max_epochs=127, val_interval=10)
val_cfg, test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=16, enable=False)
