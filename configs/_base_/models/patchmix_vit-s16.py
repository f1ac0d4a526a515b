# ViT-S/16 with projector, predictor and momentum encoder as in arXiv 2306.12243.
jitter = dict(color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_prob=0.8, grayscale_prob=0.2)
layers = dict(
    hid_channels=4096,
    out_channels=256,
    norm_cfg=dict(type='BN1d'),
    with_last_bn_affine=False,
    with_avg_pool=False,
)

model = dict(
    type='mmpatchmix.PatchMix',
    data_preprocessor=dict(
        type='mmpatchmix.PatchMixDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        num_mix=2,
        patch_size=16,  # of the mix; here the ViT's
        augment=dict(
            view_1=dict(type='mmpatchmix.ViewAugment', blur_prob=1.0, **jitter),
            view_2=dict(type='mmpatchmix.ViewAugment', blur_prob=0.1, solarize_prob=0.2, **jitter),
            local_views=dict(type='mmpatchmix.ViewAugment', blur_prob=0.5, **jitter),
        ),
    ),
    backbone=dict(
        type='mmpatchmix.PatchMixViT',
        arch=dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536),
        patch_size=16,
        drop_path_rate=0.1,
    ),
    neck=dict(
        type='mmpretrain.NonLinearNeck',  # the projector
        num_layers=3,
        **layers,
    ),
    head=dict(
        type='mmpatchmix.ContrastiveHead',
        predictor=dict(type='mmpretrain.NonLinearNeck', num_layers=2, **layers),
        temperature=0.2,
        label_smoothing=0.0,
    ),
    momentum_encoder=dict(type='mmpatchmix.MomentumEncoder'),
)
del jitter, layers
