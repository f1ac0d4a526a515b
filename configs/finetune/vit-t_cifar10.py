# Fine-tuning of a pre-trained ViT-T/2 on CIFAR-10, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 97.5 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/finetune/vit-t_cifar10.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-t_cifar10/epoch_800.pth
_base_ = './vit-s_cifar10.py'

model = dict(backbone=dict(arch=dict(embed_dims=192, num_heads=3, feedforward_channels=768)))
# base lr 1e-3 per 256 images: 1e-3 * 512 / 256 = 2e-3
optim_wrapper = dict(optimizer=dict(lr=2e-3))
