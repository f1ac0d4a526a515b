"""ViTs of timm against timm's own features, and against transformers' DINOv3."""

import re

import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from safetensors.torch import save_file
from torch import nn

from mmpatchmix.checkpoints.vit_spec import compare_with_run
from mmpatchmix.models import PatchMixViT, TimmViT
from mmpatchmix.registry import MODELS
from tests.models.tiny import tiny_config, uint8_batch

DINOV3 = 'vit_small_patch16_dinov3'
SMALL = dict(embed_dim=48, depth=3, num_heads=3, patch_size=4, img_size=32)
TINY = dict(model=DINOV3, options=SMALL)
FAMILIES = [
    DINOV3,
    'eva02_tiny_patch14_224',
    'vit_small_patch14_reg4_dinov2',
    'vit_base_patch16_siglip_224',
    'vit_tiny_patch16_224',
]


def randomise(model, scale=0.1):
    """Draw all weights anew, so that no part is without effect, as LayerScale of 1e-5 is."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = scale * noise + (parameter.ndim == 1)
    return model.eval()


def write(model, path, **extra):
    save_file(model.state_dict() | extra, path)
    return dict(type='Pretrained', checkpoint=str(path))


def pictures(size, count=2, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def features(vit, images):
    with torch.no_grad():
        return vit.eval()(images)[-1]


def timm_feature(model, images):
    """The class token, if the model norms it, else timm's feature before the classifier."""
    with torch.no_grad():
        tokens = model.forward_features(images)
        if model.cls_token is not None and not isinstance(model.norm, nn.Identity):
            return tokens[:, 0]
        return model.forward_head(tokens, pre_logits=True)


@pytest.mark.parametrize(
    ('name', 'options', 'size'),
    [
        (DINOV3, {}, 96),
        ('vit_base_patch16_dinov3_qkvb', dict(depth=2), 96),
        ('eva02_small_patch14_224', {}, 98),
        ('vit_small_patch14_reg4_dinov2', dict(depth=2), 98),
        ('vit_base_patch16_siglip_224.v2_webli', dict(depth=2), 96),
        ('vit_small_patch16_224', dict(depth=2), 96),
    ],
)
def test_features_of_files_of_timm_are_those_of_timm(name, options, size, tmp_path):
    """Real layouts with random weights, a classifier included, on images of two sizes."""
    source = randomise(timm.create_model(name, num_classes=5, dynamic_img_size=True, **options))
    vit = TimmViT(name, options=options, init_cfg=write(source, tmp_path / 'x.safetensors'))
    vit.init_weights()
    for side in (size, 2 * size):
        expected = timm_feature(source, pictures(side))
        assert expected.std() > 0.1 and expected.shape == (2, vit.embed_dims)
        assert (features(vit, pictures(side)) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match='not divisible by the patch size'):
        vit(pictures(size + 1))


def dinov3_of_transformers(gated):
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, patch_size=4)
    config = transformers.DINOv3ViTConfig(
        **sizes, intermediate_size=192, image_size=32, num_register_tokens=4,
        use_gated_mlp=gated, hidden_act='silu' if gated else 'gelu',
    )  # fmt: skip
    return randomise(transformers.DINOv3ViTModel(config))


@pytest.mark.parametrize('gated', [False, True])
def test_dinov3_of_transformers_has_the_same_features(gated, tmp_path):
    model = dinov3_of_transformers(gated)
    model.save_pretrained(tmp_path)
    name = f'vit_small_{"plus_" * gated}patch16_dinov3_qkvb'
    start = dict(type='Pretrained', checkpoint=str(tmp_path))
    vit = TimmViT(name, options=SMALL, init_cfg=start)
    vit.init_weights()
    assert compare_with_run(str(tmp_path), 'model = dict()') == ''  # as before every training
    for size in (32, 20):
        with torch.no_grad():
            expected = model(pictures(size)).last_hidden_state[:, 0]
        assert (features(vit, pictures(size)) - expected).abs().max() < 1e-5


def original_dinov3(model, bias):
    """The names of DINOv3's authors, a bias of query, key and value in each block included."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace('reg_token', 'storage_tokens').replace('gamma_', 'ls')
        state[re.sub(r'(ls\d)$', r'\1.gamma', key)] = value
    width = model.embed_dim
    for block in range(len(model.blocks)):
        state[f'blocks.{block}.attn.qkv.bias'] = torch.full((3 * width,), bias)
        state[f'blocks.{block}.attn.qkv.bias_mask'] = torch.ones(3 * width)
    return state | {'mask_token': torch.ones(1, width), 'rope_embed.periods': torch.ones(4)}


def test_biases_of_original_dinov3_are_not_lost(tmp_path, capsys):
    source = randomise(timm.create_model(DINOV3, num_classes=0, **SMALL))
    for bias in (0.0, 0.5):
        torch.save(dict(teacher=original_dinov3(source, bias)), tmp_path / f'{bias}.pth')
    start = dict(type='Pretrained', checkpoint=str(tmp_path / '0.0.pth'))
    vit = TimmViT(**TINY, init_cfg=start)
    vit.init_weights()
    expected = timm_feature(source, pictures(32))
    assert (features(vit, pictures(32)) - expected).abs().max() < 1e-5
    start = dict(type='Pretrained', checkpoint=str(tmp_path / '0.5.pth'))
    vit = TimmViT(**TINY, init_cfg=start)
    with pytest.raises(ValueError, match=r'unexpected: blocks\.0\.attn\.q_bias'):
        vit.init_weights()
    with_bias = TimmViT(f'{DINOV3}_qkvb', options=SMALL, init_cfg=start)
    with_bias.init_weights()
    assert with_bias.model.blocks[2].attn.v_bias.unique().tolist() == [0.5]
    assert 'attn' not in capsys.readouterr().out  # timm prints the biases that it leaves out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(model='vit_small_patch16_224'),
            r'missing: pos_embed(.|\n)*, reg_token',
        ),
        (dict(options=SMALL | dict(patch_size=8)), 'has patches of 4 pixels, and the model of 8'),
        (dict(options=SMALL | dict(depth=2)), r'unexpected: blocks\.2\.'),
    ],
)
def test_files_of_other_networks_are_refused(change, message, tmp_path):
    source = timm.create_model(DINOV3, num_classes=0, **SMALL)
    start = write(source, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=message):
        TimmViT(**TINY | change, init_cfg=start).init_weights()


@pytest.mark.parametrize('name', ['no_such_model', 'resnet18', 'swin_tiny_patch4_window7_224'])
def test_other_models_are_refused(name):
    with pytest.raises(ValueError, match=f"model.backbone.model='{name}' is no ViT"):
        TimmViT(name)


@pytest.mark.parametrize('out_type', ['cls_token', 'map'])
def test_outputs_that_a_model_lacks_are_refused(out_type):
    with pytest.raises(ValueError, match=f"out_type='{out_type}': .* has pooled, raw, featmap"):
        TimmViT('vit_base_patch16_siglip_224', out_type=out_type, options=SMALL)


def tiny_patchmix(**backbone):
    torch.manual_seed(0)
    cfg = tiny_config()
    cfg.backbone = dict(type='mmpatchmix.TimmViT') | TINY | backbone
    cfg.neck.pop('in_channels')  # derived
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def gradients(model):
    torch.manual_seed(1)
    model.train()
    model.update_momentum_encoder(0.9)
    inputs = model.data_preprocessor(uint8_batch(num_local=2), training=True)
    losses = model.loss(**inputs)
    sum(value for key, value in losses.items() if key.startswith('loss')).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('name', FAMILIES)
def test_pre_training_trains_every_parameter_alike_with_checkpoints(name):
    plain, recomputed = (gradients(tiny_patchmix(model=name, with_cp=cp)) for cp in (False, True))
    for key, value in plain.items():
        # The bias of keys has no effect in softmax.
        assert value.abs().sum() > 0 or key.endswith('qkv.bias'), key
        assert torch.allclose(recomputed[key], value, atol=1e-6), key


def test_pre_training_compiles_as_a_whole():
    model = tiny_patchmix()
    expected = gradients(tiny_patchmix())
    model.backbone.compile(backend='eager', fullgraph=True, dynamic=False)
    for key, value in gradients(model).items():
        assert torch.allclose(expected[key], value, atol=1e-6), key


def test_only_the_queries_drop_paths():
    model = tiny_patchmix(drop_path_rate=0.5)
    dropped = {m.drop_prob for m in model.backbone.modules() if hasattr(m, 'drop_prob')}
    kept = {m.drop_prob for m in model.momentum_encoder.modules() if hasattr(m, 'drop_prob')}
    assert max(dropped) == 0.5 and kept == {0.0}


def test_a_frozen_trunk_trains_the_last_blocks_only():
    model = tiny_patchmix(frozen_stages=2, drop_path_rate=0.5)
    trained = {name for name, grad in gradients(model).items() if name.startswith('backbone.')}
    assert {name.split('.')[2] for name in trained} == {'blocks', 'norm'}
    assert {name.split('.')[3] for name in trained if '.blocks.' in name} == {'2'}
    assert [block.training for block in model.backbone.model.blocks] == [False, False, True]
    assert not gradients(tiny_patchmix(frozen_stages=3)).keys() & trained


def test_rates_fall_from_block_to_block():
    model = nn.Module()
    model.backbone, model.neck = TimmViT(**TINY), nn.Linear(2, 2)
    cfg = dict(
        constructor='mmpatchmix.LayerDecayConstructor',
        optimizer=dict(type='AdamW', lr=1.0),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    rates = {}
    for group in build_optim_wrapper(model, cfg).optimizer.param_groups:
        rates |= dict.fromkeys(group['param_names'], group['lr'])
    assert rates.keys() == dict(model.named_parameters()).keys()
    for name, rate in rates.items():
        block = re.search(r'blocks\.(\d)', name)
        is_embedding = re.search('token|patch_embed', name)
        assert rate == (0.5 ** (3 - int(block[1])) if block else 0.5**4 if is_embedding else 1), (
            name
        )


@pytest.mark.parametrize('name', FAMILIES)
def test_maps_are_those_of_timm_and_every_parameter_has_a_gradient(name, tmp_path):
    source = timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL)
    start = write(randomise(source), tmp_path / 'x.safetensors')
    maps = dict(out_type='featmap', out_indices=[0, -2])
    vit = TimmViT(name, options=SMALL, **maps, init_cfg=start)
    vit.init_weights()
    vit.eval()
    with torch.no_grad():
        _, expected = source.forward_intermediates(pictures(24), [0, 1])
    assert expected[0].shape == (2, 48, 6, 6)
    for found, wanted in zip(vit(pictures(24)), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    padded = vit(pictures(24)[..., :21])  # to 24
    assert [one.shape for one in padded] == [(2, 48, 6, 6)] * 2
    sum(one.sin().sum() for one in padded).backward()
    assert all(parameter.grad is not None for parameter in vit.parameters())


@pytest.mark.parametrize('name', FAMILIES)
def test_raw_tokens_begin_with_the_feature(name):
    vit = randomise(TimmViT(name, options=SMALL))
    feature = features(vit, pictures(16))
    vit.out_type = 'raw'
    tokens = features(vit, pictures(16))
    with torch.no_grad():
        patches = vit.model.forward_features(pictures(16))[:, -16:]
    assert torch.equal(tokens[:, 0], feature) and torch.equal(tokens[:, 1:], patches)
    assert tokens.shape[1] == vit.num_extra_tokens + 16


def test_frozen_blocks_of_our_vit_have_no_drop_path_and_registers_no_gradient():
    arch = dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24)
    options = dict(arch=arch, img_size=16, patch_size=4, num_registers=2, drop_path_rate=0.5)
    vit = PatchMixViT(**options, frozen_stages=1)
    vit.train()
    assert [block.training for block in vit.layers] == [False, True]
    trained = {name.split('.')[0] for name, p in vit.named_parameters() if p.requires_grad}
    assert trained == {'layers', 'ln1'}
    assert PatchMixViT(**options).register_tokens.requires_grad
    frozen = PatchMixViT(**options, frozen_stages=3)  # more than there are
    frozen.train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module.training for module in frozen.modules())
