# Fine-tuning of a pre-trained ViT-B/2 on CIFAR-10, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 98.3 % top-1.
# Data: data/cifar10, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/finetune/vit-b_cifar10.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_cifar10/epoch_800.pth
_base_ = './vit-s_cifar10.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
