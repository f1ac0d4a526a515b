# Linear probe of a pre-trained ViT-B/16 on ImageNet-1K, 100 epochs (arXiv 2306.12243).
#
# Meant for 4 GPUs x 256 images. Paper: 80.2 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
#
#   bash tools/dist_train.sh configs/linear/vit-b_in1k.py 4 --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_in1k/epoch_300.pth
_base_ = './vit-s_in1k.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
# base lr 0.01 per 256 images: 0.01 * 1024 / 256 = 0.04
optim_wrapper = dict(optimizer=dict(lr=0.04))
