# PatchMix, ViT-B/16, ImageNet-1K, 300 epochs (https://arxiv.org/abs/2306.12243).
#
# Meant for 8 GPUs x 128 images. Paper: kNN 76.2, linear 80.2, fine-tuned 84.1 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
#
#   bash tools/dist_train.sh configs/patchmix_vit-b_in1k.py 8
_base_ = './patchmix_vit-s_in1k.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
# base lr 7.5e-4 per 256 images: 7.5e-4 * 1024 / 256 = 3e-3
optim_wrapper = dict(optimizer=dict(lr=3e-3))
