# PatchMix, ViT-S/16, ImageNet-1K, 300 epochs (https://arxiv.org/abs/2306.12243).
#
# Meant for 8 GPUs x 128 images. Paper: kNN 73.3, linear 77.4, fine-tuned 82.8 % top-1.
# Data: data/imagenet/{train,val}/CLASS/*.JPEG, or --data-root PATH.
# Another size: PATCHMIX_IMG_SIZE=160 before the command changes crops, test views and positions.
#
#   bash tools/dist_train.sh configs/patchmix_vit-s_in1k.py 8
_base_ = [
    './_base_/models/patchmix_vit-s16.py',
    './_base_/datasets/in1k_multi_crop.py',
    './_base_/schedules/adamw_in1k_300e.py',
    './_base_/pretraining.py',
]

model = dict(backbone=dict(img_size=_base_.pop('img_size')))
