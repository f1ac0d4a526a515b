"""Mask R-CNN with a plain ViT-S/16 and FPN on COCO, 12 epochs, as the method's own lab trains it.

Paper:    MGC, arXiv 2407.02014, the follow-up of PatchMix: 42.0 box AP, 38.0 mask AP, from 800
          epochs of MGC on COCO.
Hardware: meant for 8 GPUs of 12 GB or more, 1 image each; the lab names no number of GPUs.
Command:  bash tools/dist_train.sh configs/coco/mask-rcnn_vit-s_fpn_mgc_1x.py 8 --cfg-options \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
"""

_base_ = './mask-rcnn_vit-s_fpn_1x.py'

model = dict(backbone=dict(drop_path_rate=0.0))
# The augmentation of DETR: one of eleven sizes, for half of the images after a crop.
sizes = [(side, 1333) for side in range(480, 801, 32)]
resize = dict(type='RandomChoiceResize', keep_ratio=True)
crop = dict(type='RandomCrop', crop_type='absolute_range', allow_negative_crop=True)
cropped = [
    dict(resize, scales=[(400, 1333), (500, 1333), (600, 1333)]),
    dict(crop, crop_size=(384, 600)),
    dict(resize, scales=sizes),
]
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[dict(resize, scales=sizes)], cropped]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=pipeline))
del sizes, resize, crop, cropped, pipeline

# One rate for all blocks; biases decay, and norms, class token and positions do not.
undecayed = dict(cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, custom_keys=undecayed),
)
del undecayed
_base_.param_scheduler[0].end = 1000
auto_scale_lr = dict(base_batch_size=8)
