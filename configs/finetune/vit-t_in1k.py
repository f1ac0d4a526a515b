# Fine-tuning of a pre-trained ViT-T/16 on ImageNet-1K, 100 epochs
# (https://arxiv.org/abs/2306.12243).
#
# Meant for 8 GPUs x 128 images. The paper has no figure for it.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
#
#   bash tools/dist_train.sh configs/finetune/vit-t_in1k.py 8 --cfg-options \
#       model.backbone.checkpoint=work_dirs/patchmix_vit-t_in1k/epoch_300.pth
_base_ = './vit-s_in1k.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=192, num_heads=3, feedforward_channels=768)),
    head=dict(in_channels=192),
)
# base lr 1e-3 per 256 images: 1e-3 * 1024 / 256 = 4e-3
optim_wrapper = dict(optimizer=dict(lr=4e-3))
