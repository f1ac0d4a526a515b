# PatchMix, ViT-T/2, CIFAR-100, 800 epochs, no momentum encoder (https://arxiv.org/abs/2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: kNN 68.8, linear 74.7, fine-tuned 84.9 % top-1.
# Data: data/cifar100, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/patchmix_vit-t_cifar100.py
_base_ = './patchmix_vit-t_cifar10.py'

cifar100 = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
train_dataloader = val_dataloader = test_dataloader = cifar100
val_cfg = test_cfg = dict(bank_dataloader=cifar100)
del cifar100
