# PatchMix, ViT-S/2, CIFAR-10, 800 epochs (https://arxiv.org/abs/2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: kNN 94.6, linear 96.0, fine-tuned 98.1 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
# Another size: PATCHMIX_IMG_SIZE=48 before the command changes crops, test views and positions.
#
#   python tools/train.py configs/patchmix_vit-s_cifar10.py
_base_ = [
    './_base_/models/patchmix_vit-s2_cifar.py',
    './_base_/datasets/cifar10_two_crops.py',
    './_base_/schedules/adamw_cifar_800e.py',
    './_base_/pretraining.py',
]

model = dict(backbone=dict(img_size=_base_.pop('img_size')))
