# PatchMix, ViT-H/16, ImageNet-1K, weights sharded over the GPUs (https://arxiv.org/abs/2306.12243).
#
# No paper has figures for it, and it has not been run to its end: as patchmix_vit-l_in1k_fsdp.py,
# with 32 blocks of 1280 channels. Patches of 16 pixels, which divide crops of 224 and 96; those
# of 14 that others take do not. Meant for 8 GPUs x 128 images, with 19 % more arithmetic.
#
#   bash tools/dist_train.sh configs/patchmix_vit-h_in1k_fsdp.py 8
_base_ = './patchmix_vit-l_in1k_fsdp.py'

model = dict(backbone=dict(arch=dict(embed_dims=1280, num_layers=32, feedforward_channels=5120)))
