# PatchMix, ViT-B/2, CIFAR-10, 800 epochs (https://arxiv.org/abs/2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: kNN 95.8, linear 96.6, fine-tuned 98.3 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/patchmix_vit-b_cifar10.py
_base_ = './patchmix_vit-s_cifar10.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
# base lr 7.5e-4 per 256 images: 7.5e-4 * 512 / 256 = 1.5e-3
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
