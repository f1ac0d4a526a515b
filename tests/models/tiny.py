"""A PatchMix small enough for tests, and batches for it."""

import torch
from mmengine.config import ConfigDict

from mmpatchmix.registry import MODELS


def tiny_config(**changes) -> ConfigDict:
    """Config of a ViT with 2 layers of 16 channels on 16-pixel images."""

    mlp = dict(type='mmpretrain.NonLinearNeck', hid_channels=32, out_channels=12)
    mlp |= dict(norm_cfg=dict(type='BN1d'), with_last_bn_affine=False, with_avg_pool=False)
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    predictor = dict(mlp, in_channels=12, num_layers=2)
    cfg = ConfigDict(
        type='mmpatchmix.PatchMix',
        data_preprocessor=dict(type='mmpatchmix.PatchMixDataPreprocessor', patch_size=4),
        backbone=dict(type='mmpatchmix.PatchMixViT', arch=arch, img_size=16, patch_size=4),
        neck=dict(mlp, in_channels=16, num_layers=3),
        head=dict(type='mmpatchmix.ContrastiveHead', predictor=predictor),
        momentum_encoder=dict(type='mmpatchmix.MomentumEncoder'),
    )
    if 'type' in changes.get('backbone', {}):  # another one; update() would merge both
        del cfg.backbone
    cfg.update(changes)
    return cfg


def tiny_model(seed=0, **changes):
    """Build it, initialised, with a momentum encoder that differs from the queries'."""
    torch.manual_seed(seed)
    model = MODELS.build(tiny_config(**changes))
    model.init_weights()
    if model.momentum_encoder is not None:
        with torch.no_grad():
            for parameter in model.momentum_encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.update_momentum_encoder(0.9)
    return model


def uint8_batch(num_images=6, size=16, num_local=0, local_size=8, seed=0):
    """A batch as the workers collate it."""
    generator = torch.Generator().manual_seed(seed)

    def images(*shape):
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    inputs = {name: images(num_images, 3, size, size) for name in ('view_1', 'view_2')}
    if num_local:
        inputs['local_views'] = images(num_images, num_local, 3, local_size, local_size)
    return {'inputs': inputs, 'data_samples': [None] * num_images}
