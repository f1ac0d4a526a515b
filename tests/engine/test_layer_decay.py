"""Learning rate and weight decay of every parameter against a table."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmpatchmix.models.detection import DetectionViT, WindowedViT
from tests.models.tiny import tiny_model

DEPTH, RATE, LR, DECAY = 12, 0.7, 1e-3, 0.05
ARCH = {'embed_dims': 12, 'num_layers': DEPTH, 'num_heads': 3, 'feedforward_channels': 24}
# Multiples of the learning rate: 0.7 ** 13 for embeddings, 0.7 ** 12 for the first block, up to
# 0.7 for the last; 1 for what follows the backbone.
BLOCKS = [
    0.013841287201, 0.01977326743, 0.0282475249, 0.040353607, 0.05764801, 0.0823543,
    0.117649, 0.16807, 0.2401, 0.343, 0.49, 0.7,
]  # fmt: skip
EMBEDDING = 0.0096889010407


def detector(kind, **kwargs):
    model = nn.Module()
    model.backbone = kind(arch=ARCH, img_size=32, patch_size=8, **kwargs)
    model.neck = nn.Conv2d(12, 4, 1)
    model.layers = nn.ModuleList([nn.Linear(4, 4)])  # a head that is called as blocks are
    return model


def settings(model):
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='mmpatchmix.DetectorLayerDecayConstructor',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
            paramwise_cfg=dict(
                layer_decay_rate=RATE,
                flat_decay_mult=0.0,
                custom_keys={
                    '.cls_token': dict(decay_mult=0.0),
                    '.pos_embed': dict(decay_mult=0.0),
                    '.rel_pos_': dict(decay_mult=0.0),
                },
            ),
        ),
    )
    groups = wrapper.optimizer.param_groups
    found = {}
    for group in groups:
        for name, parameter in zip(group['param_names'], group['params'], strict=True):
            assert parameter is dict(model.named_parameters())[name]
            found[name] = (group['lr'] / LR, group['weight_decay'])
    return found, groups


@pytest.mark.parametrize(
    ('kind', 'kwargs'),
    [(DetectionViT, {}), (WindowedViT, {'use_rel_pos': True, 'rel_pos_size': 4})],
)
def test_every_parameter_is_as_tabulated(kind, kwargs):
    model = detector(kind, **kwargs)
    found, groups = settings(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, (scale, decay) in found.items():
        parts = name.split('.')
        if parts[:2] == ['backbone', 'layers']:
            expected = BLOCKS[int(parts[2])]
        else:
            expected = EMBEDDING if parts[0] == 'backbone' else 1.0
        assert scale == pytest.approx(expected, rel=1e-9), name
        exempt = (
            parts[-1] in ('bias', 'cls_token', 'pos_embed', 'rel_pos_h', 'rel_pos_w')
            or '.ln' in name
        )
        assert decay == (0.0 if exempt else DECAY), name
    # 13 depths of the backbone and what follows it, with and without decay
    assert len(groups) == 2 * (DEPTH + 2)


def test_frozen_parameters_are_left_out():
    model = detector(DetectionViT)
    model.backbone.patch_embed.requires_grad_(False)
    assert not any('patch_embed' in name for name in settings(model)[0])


def test_pre_training_is_as_tabulated_and_decays_as_its_recipe():
    """Weights decay, biases and 1-D parameters do not; the momentum encoder is left out."""
    cfg = Config.fromfile('configs/patchmix_vit-s_continue.py')
    model = tiny_model()  # two blocks
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {'layers.0': 0.75**2, 'layers.1': 0.75, 'ln1': 1.0}
    seen = 0
    for group in wrapper.optimizer.param_groups:
        for name, parameter in zip(group['param_names'], group['params'], strict=True):
            part = '.'.join(name.removeprefix('backbone.').split('.')[:2])
            rate = rates.get(part, rates.get(part.split('.')[0], 0.75**3))
            expected = rate if name.startswith('backbone.') else 1.0
            assert group['lr'] == pytest.approx(expected * 2.5e-5), name
            assert group['weight_decay'] == (0.04 if parameter.ndim > 1 else 0.0), name
            seen += 1
    assert seen == sum(parameter.requires_grad for parameter in model.parameters())
    # Embeddings, two blocks and the rest: weights apart from 1-D parameters
    assert len(wrapper.optimizer.param_groups) == 8


def test_a_model_without_vit_is_named():
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match='get_layer_depth'):
        settings(model)
    assert torch.is_tensor(model.backbone.weight)
