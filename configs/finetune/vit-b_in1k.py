# Fine-tuning of a pre-trained ViT-B/16 on ImageNet-1K, 100 epochs (arXiv 2306.12243).
#
# Meant for 8 GPUs x 128 images. Paper: 84.1 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
#
#   bash tools/dist_train.sh configs/finetune/vit-b_in1k.py 8 --cfg-options \
#       model.backbone.init_cfg.checkpoint=work_dirs/patchmix_vit-b_in1k/epoch_300.pth
_base_ = './vit-s_in1k.py'

model = dict(backbone=dict(arch=dict(embed_dims=768, feedforward_channels=3072)))
