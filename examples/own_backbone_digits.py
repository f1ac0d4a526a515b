# The digits demo with the backbone of own_backbone.py, which the second line imports.
_base_ = '../configs/patchmix_vit-digits.py'
custom_imports = dict(imports=['mmpatchmix.registry', 'own_backbone'], allow_failed_imports=False)

widths = (16, 32, 64, 96)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpatchmix.TimmFeatures',
        name='convnext_atto',
        dims=widths,
        depths=(1, 1, 2, 1),
        patch_size=2,  # of the first layer: 32 pixels are 16 x 16, 8 x 8, 4 x 4, 2 x 2
    ),
    neck=dict(in_channels=widths[-1]),
)
del widths
