# Mask R-CNN on objects of any class in 100 photographs.
#
#   python benchmarks/detection.py --photographs PATH
_base_ = '../../configs/coco/mask-rcnn_vit-digits_scenes.py'

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
)
objects = dict(metainfo=dict(classes=('object',)))
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        **objects,
        data_prefix=dict(img='train2017/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(160, 160), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = test_dataloader = dict(dataset=dict(**objects, data_prefix=dict(img='val2017/')))
for loader in (_base_.val_dataloader, _base_.test_dataloader):
    loader.dataset.pipeline[1].scale = (160, 160)
del objects, loader

# 12 epochs of 25 iterations
train_cfg = dict(max_epochs=12, val_interval=12)
_base_.param_scheduler[1].end = 12
