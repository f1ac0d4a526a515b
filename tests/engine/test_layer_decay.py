"""Learning rate and weight decay of every parameter against closed forms."""

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmpatchmix.models.detection import DetectionViT, WindowedViT
from tests.models.tiny import tiny_model

DEPTH, RATE, LR, DECAY = 12, 0.7, 1e-3, 0.05
ARCH = {'embed_dims': 12, 'num_layers': DEPTH, 'num_heads': 3, 'feedforward_channels': 24}


def detector(kind, **kwargs):
    model = nn.Module()
    model.backbone = kind(arch=ARCH, img_size=32, patch_size=8, **kwargs)
    model.neck = nn.Conv2d(12, 4, 1)
    model.layers = nn.ModuleList([nn.Linear(4, 4)])  # a head that is called as blocks are
    return model


def settings(model):
    flat = {f'.{name}': dict(decay_mult=0.0) for name in ('cls_token', 'pos_embed', 'rel_pos_')}
    cfg = dict(
        constructor='mmpatchmix.LayerDecayConstructor',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        paramwise_cfg=dict(layer_decay_rate=RATE, flat_decay_mult=0.0, custom_keys=flat),
    )
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
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
def test_every_parameter_follows_the_closed_form(kind, kwargs):
    model = detector(kind, **kwargs)
    model.backbone.patch_embed.projection.bias.requires_grad_(False)
    found, groups = settings(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    for name, (scale, decay) in found.items():
        parts = name.split('.')
        depth = 0  # of embeddings; what follows the backbone is at DEPTH + 1
        if parts[0] != 'backbone':
            depth = DEPTH + 1
        elif parts[1] == 'layers':
            depth = int(parts[2]) + 1
        expected = RATE ** (DEPTH + 1 - depth)
        assert scale == pytest.approx(expected, rel=1e-9), name
        names = ('bias', 'cls_token', 'pos_embed', 'rel_pos_h', 'rel_pos_w')
        assert decay == (0.0 if parts[-1] in names or '.ln' in name else DECAY), name
    # 13 depths of the backbone and what follows it, with and without decay
    assert len(groups) == 2 * (DEPTH + 2)


def test_pre_training_has_lower_rates_in_first_blocks_and_decays_as_its_recipe():
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
