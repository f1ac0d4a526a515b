# PatchMix, ViT-T/2, CIFAR-10, 800 epochs, no momentum encoder (https://arxiv.org/abs/2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: kNN 92.9, linear 94.4, fine-tuned 97.5 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/patchmix_vit-t_cifar10.py
_base_ = './patchmix_vit-s_cifar10.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=192, num_heads=3, feedforward_channels=768)),
    momentum_encoder=None,
)
# base lr 2e-3 per 256 images: 2e-3 * 512 / 256 = 4e-3
optim_wrapper = dict(optimizer=dict(lr=4e-3, weight_decay=0.02))
_base_.param_scheduler[2].eta_min = 0.2  # weight decay 0.02 -> 0.2
