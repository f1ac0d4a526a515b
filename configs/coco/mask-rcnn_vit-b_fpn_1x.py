"""Mask R-CNN with a plain ViT-B/16 and FPN on COCO, 1x schedule (12 epochs).

Paper:    PatchMix, arXiv 2306.12243, the COCO transfer.
Hardware: meant for 8 GPUs of 40 GB or more, 2 images each (batch 16).
Command:  bash tools/dist_train.sh configs/coco/mask-rcnn_vit-b_fpn_1x.py 8 --cfg-options \
              model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_in1k/epoch_300.pth
"""

_base_ = './mask-rcnn_vit-s_fpn_1x.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
_base_.model.neck[0].in_channels = 768
_base_.model.neck[1].in_channels = [768] * 4
