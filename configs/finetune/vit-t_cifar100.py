# Fine-tuning of a pre-trained ViT-T/2 on CIFAR-100, 100 epochs (arXiv 2306.12243).
#
# Meant for 1 GPU x 512 images. Paper: 84.9 % top-1.
# Data: data/cifar100, downloaded when it is not there, or --data-root PATH.
#
#   python tools/train.py configs/finetune/vit-t_cifar100.py --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-t_cifar100/epoch_800.pth
_base_ = './vit-t_cifar10.py'

model = dict(num_classes=100)
cifar100 = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
train_dataloader = val_dataloader = test_dataloader = cifar100
del cifar100
