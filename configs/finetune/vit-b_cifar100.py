# Fine-tuning of a pre-trained ViT-B/2 on CIFAR-100, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 86.0 % top-1.
# Data: data/cifar100, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/finetune/vit-b_cifar100.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_cifar100/epoch_800.pth
_base_ = './vit-s_cifar100.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
