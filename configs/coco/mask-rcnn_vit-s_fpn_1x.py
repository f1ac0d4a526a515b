"""Mask R-CNN with a plain ViT-S/16 and FPN on COCO, 1x schedule (12 epochs).

Paper:    PatchMix, arXiv 2306.12243, the COCO transfer.
Hardware: meant for 8 GPUs of 24 GB or more, 2 images each (batch 16).
Command:  bash tools/dist_train.sh configs/coco/mask-rcnn_vit-s_fpn_1x.py 8 --cfg-options \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
Data:     data/coco/{annotations,train2017,val2017}, COCO's own layout, or a link to it:
              ln -s /path/to/coco data/coco
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    '../_base_/runtime_mmdet.py',
]

# Variables of mmdet that do not affect the loaders.
dead = ('data_root', 'dataset_type', 'backend_args', 'train_pipeline', 'test_pipeline')
[_base_.pop(key) for key in dead]
del dead

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatchmix.DetectionViT',
        arch=dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536),
        out_indices=[3, 5, 7, 11],  # blocks 4, 6, 8 and 12
        drop_path_rate=0.1,
        # checkpoint: a pre-training checkpoint or a converted backbone
        init_cfg=dict(type='Pretrained', checkpoint=None),
    ),
    neck=[
        dict(type='mmpatchmix.ViTPyramid', in_channels=384, strides=(4, 8, 16, 32)),
        dict(type='FPN', in_channels=[384] * 4, out_channels=256, num_outs=5),
    ],
    # The same heads, but box coordinates stay float32 under autocast.
    rpn_head=dict(type='mmpatchmix.FullPrecisionRPNHead'),
    roi_head=dict(
        bbox_roi_extractor=dict(type='mmpatchmix.FullPrecisionRoIExtractor'),
        mask_roi_extractor=dict(type='mmpatchmix.FullPrecisionRoIExtractor'),
    ),
)

# Checks the annotation files; skips and counts unreadable images.
train_dataloader = dict(dataset=dict(type='mmpatchmix.CocoDataset'))
val_dataloader = test_dataloader = dict(dataset=dict(type='mmpatchmix.CocoDataset'))

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmpatchmix.LayerDecayConstructor',
    # lr for a batch of 16 = 8 GPUs x 2; --auto-scale-lr adapts it to another batch.
    optimizer=dict(type='AdamW', lr=7.5e-5, betas=(0.9, 0.999), weight_decay=0.03),
    paramwise_cfg=dict(
        layer_decay_rate=0.75,
        flat_decay_mult=0.0,  # biases and norms
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
train_cfg = dict(type='mmpatchmix.ExactTrainLoop')
