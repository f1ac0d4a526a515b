# ViT-S/2 for 32x32 images: 16x16 = 256 patches of 2x2 pixels.
_base_ = './patchmix_vit-s16.py'

model = dict(
    data_preprocessor=dict(
        patch_size=2,
        to_rgb=False,  # mmpretrain's CIFAR data sets are RGB already
    ),
    backbone=dict(patch_size=2),
)
