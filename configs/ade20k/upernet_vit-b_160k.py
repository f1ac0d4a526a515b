# UPerNet with a plain ViT-B/16 on ADE20K; everything else as for ViT-S.
#
# Meant for 8 GPUs of 40 GB or more, 2 images each (batch 16).
#
#   bash tools/dist_train.sh configs/ade20k/upernet_vit-b_160k.py 8 --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_in1k/epoch_300.pth
_base_ = './upernet_vit-s_160k.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)),
    neck=dict(in_channels=768),
    decode_head=dict(in_channels=[768] * 4, channels=768),
    auxiliary_head=dict(in_channels=768),
)
