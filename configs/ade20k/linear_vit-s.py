# A linear probe of ViT-S/16 on ADE20K: BatchNorm and a 1x1 convolution on frozen patch tokens.
#
# Meant for 8 GPUs of 8 GB or more, 2 images each (batch 16): 32 epochs, 40,448 iterations, as in
# DINOv2. --auto-scale-lr adapts the rate to another batch.
#
#   python tools/train.py configs/ade20k/linear_vit-s.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-s_in1k/epoch_300.pth
_base_ = './upernet_vit-s_160k.py'

custom_imports = dict(
    imports=['mmpatchmix.registry', 'mmpatchmix.models.detection.linear_seg_head']
)
model = dict(
    # All blocks are frozen, of a ViT of any depth.
    backbone=dict(out_indices=[-1], final_norm=True, frozen_stages=1000, drop_path_rate=0.0),
    neck=None,
    decode_head=dict(
        _delete_=True, type='mmpatchmix.LinearSegHead', in_channels=384, num_classes=150
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(
    constructor='mmpatchmix.DecayGroupsConstructor',
    optimizer=dict(lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0),
)
_base_.param_scheduler[1].end = 32
train_cfg = dict(max_epochs=32)
