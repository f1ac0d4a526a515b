# Linear probe of a pre-trained ViT-T/2 on CIFAR-10, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 94.4 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/linear/vit-t_cifar10.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-t_cifar10/epoch_800.pth
_base_ = './vit-s_cifar10.py'

model = dict(backbone=dict(arch=dict(embed_dims=192, num_heads=3, feedforward_channels=768)))
# base lr 0.05 per 256 images: 0.05 * 512 / 256 = 0.1
optim_wrapper = dict(optimizer=dict(lr=0.1))
