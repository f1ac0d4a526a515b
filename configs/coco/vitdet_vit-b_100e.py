"""ViTDet: Mask R-CNN on ViT-B/16 with windowed attention, COCO, 100 epochs.

Paper:    ViTDet, arXiv 2203.16527 (there 51.6 box AP from MAE weights, with
          use_rel_pos=True), as the stronger transfer of a PatchMix backbone.
Hardware: meant for 64 GPUs with 1 image each, or 8 of 80 GB with 8 (batch 64);
          with fewer images add --auto-scale-lr.
Command:  bash tools/dist_train.sh configs/coco/vitdet_vit-b_100e.py 8 --amp --cfg-options \
              train_dataloader.batch_size=8 model.backbone.with_cp=True \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_in1k/epoch_300.pth
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_lsj.py',
    '../_base_/runtime_mmdet.py',
]

img_size = 1024
norm = dict(type='mmpretrain.LN2d', eps=1e-6)
model = dict(
    # Padded to squares of 1024 in training and in testing, as in ViTDet.
    data_preprocessor=dict(pad_size_divisor=img_size),
    backbone=dict(
        _delete_=True,
        type='mmpatchmix.WindowedViT',
        arch=dict(embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072),
        window_size=14,
        global_blocks=[2, 5, 8, 11],
        use_rel_pos=False,  # True: relative position, as in the paper
        rel_pos_size=img_size // 16,
        drop_path_rate=0.1,
        with_cp=False,  # True saves about a third of the memory for one more pass of the blocks
        # checkpoint: a pre-training checkpoint or a converted backbone
        init_cfg=dict(type='Pretrained', checkpoint=None),
    ),
    neck=dict(
        _delete_=True, type='mmpatchmix.SimpleFeaturePyramid', in_channels=768, out_channels=256
    ),
    rpn_head=dict(type='mmpatchmix.FullPrecisionRPNHead', num_convs=2),
    roi_head=dict(
        bbox_roi_extractor=dict(type='mmpatchmix.FullPrecisionRoIExtractor'),
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm),
        mask_roi_extractor=dict(type='mmpatchmix.FullPrecisionRoIExtractor'),
        mask_head=dict(norm_cfg=norm),
    ),
)

transforms = _base_.train_dataloader.dataset.dataset.pipeline
transforms[2].scale = transforms[3].crop_size = (img_size, img_size)
for dataloader in (_base_.val_dataloader, _base_.test_dataloader):
    dataloader.dataset.pipeline[1].scale = (img_size, img_size)
del img_size, norm, transforms, dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmpatchmix.LayerDecayConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),  # batch 64
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        flat_decay_mult=0.0,  # biases and norms
        custom_keys={'.pos_embed': dict(decay_mult=0.0), '.rel_pos_': dict(decay_mult=0.0)},
    ),
)
# 25 epochs over a data set repeated 4 times; drops at 22/25 and 24/25 (ViTDet: 0.89, 0.96).
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', begin=0, end=25, by_epoch=True, milestones=[22, 24], gamma=0.1),
]
train_cfg = dict(type='mmpatchmix.ExactTrainLoop')
