"""Backbones of every known layout, loaded into ours, have the features of the source."""

import pytest
import torch

from mmpatchmix.checkpoints import read_backbone
from mmpatchmix.convert.convert_checkpoint import convert_checkpoint
from mmpatchmix.convert.features import build_vit
from mmpatchmix.models.load_backbone import load_backbone
from tests.checkpoints.vits import (
    SPEC,
    hugging_face,
    images,
    make_published_checkpoint,
    make_timm_vit,
    make_vit,
    randomise,
    save,
)


def published(folder):
    momentum = make_timm_vit(seed=2)
    return save(folder, make_published_checkpoint(make_timm_vit(seed=1), momentum)), momentum


def timm(folder):
    vit = make_timm_vit(num_classes=5)
    path = save(folder, vit.state_dict())
    vit.reset_classifier(0)
    return path, vit


def mae(folder):
    """Names of MAE's published code, decoder included."""
    vit = make_timm_vit()
    decoder = ('mask_token', 'decoder_pos_embed', 'decoder_embed.weight', 'decoder_norm.bias')
    decoder += ('decoder_blocks.0.attn.qkv.weight', 'decoder_pred.weight')
    state = vit.state_dict() | {key: torch.ones(1, 2) for key in decoder}
    return save(folder, dict(model=state, epoch=1)), vit


def dino(folder):
    """Names of DINO's training code; its student is wrapped for several GPUs."""
    student, teacher = make_timm_vit(seed=1), make_timm_vit(seed=2)
    head = {'head.mlp.0.weight': torch.ones(2), 'head.last_layer.weight_v': torch.ones(2)}
    states = [
        {f'backbone.{key}': value for key, value in vit.state_dict().items()} | head
        for vit in (student, teacher)
    ]
    student = {f'module.{key}': value for key, value in states[0].items()}
    content = dict(student=student, teacher=states[1], optimizer=dict(state={}), epoch=3)
    return save(folder, content), teacher


def dinov2(folder):
    """Names of DINOv2's published files."""
    vit = make_timm_vit(init_values=1.0)
    return save(folder, vit.state_dict() | {'mask_token': torch.ones(1, 24)}), vit


def dinov2_run(folder):
    """Names of DINOv2's training code: a teacher alone, its blocks in chunks."""
    vit = make_timm_vit(init_values=1.0)
    state = {'backbone.mask_token': torch.ones(1, 24), 'dino_head.mlp.0.bias': torch.ones(2)}
    for key, value in vit.state_dict().items():
        state['backbone.' + key.replace('blocks.', 'blocks.0.', 1)] = value
    return save(folder, dict(teacher=state)), vit


def mmpretrain_with_layer_scale(folder):
    vit = build_vit(SPEC, layer_scale_init_value=1.0)
    randomise(vit)
    state = {f'backbone.{key}': value for key, value in vit.state_dict().items()}
    return save(folder, dict(state_dict=state)), lambda x: vit(x)[-1]


def vit_folder(folder):
    path, model = hugging_face(folder, 'ViTModel', 'ViTConfig')
    return path, lambda x: model(x).last_hidden_state[:, 0]


def mae_folder(folder):
    sizes = dict(decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_intermediate_size=12)
    path, model = hugging_face(
        folder, 'ViTMAEForPreTraining', 'ViTMAEConfig', mask_ratio=0.0,
        decoder_num_attention_heads=2, **sizes,
    )  # fmt: skip
    return path, lambda x: model.vit(x).last_hidden_state[:, 0]


def dinov2_folder(folder):
    path, model = hugging_face(folder, 'Dinov2Model', 'Dinov2Config', mlp_ratio=4)
    return path, lambda x: model(x).last_hidden_state[:, 0]


def timm_with_registers(folder):
    """timm's way: no position for the class token."""
    vit = make_timm_vit(init_values=1.0, reg_tokens=3, no_embed_class=True)
    return save(folder, vit.state_dict()), vit


def dinov2_with_registers(folder):
    """DINOv2's own way: another name, and a position for the class token."""
    path, vit = timm_with_registers(folder)
    state, first = vit.state_dict(), torch.randn(1, 1, 24)
    state['register_tokens'] = state.pop('reg_token')
    state['pos_embed'] = torch.cat([first, state['pos_embed']], dim=1)
    state['cls_token'] = state['cls_token'] - first
    torch.save(dict(teacher={f'backbone.{key}': value for key, value in state.items()}), path)
    return path, vit


def dinov2_with_registers_folder(folder):
    path, model = hugging_face(folder, 'Dinov2WithRegistersModel', 'Dinov2WithRegistersConfig',
                               mlp_ratio=4, num_register_tokens=3)  # fmt: skip
    return path, lambda x: model(x).last_hidden_state[:, 0]


WITH_REGISTERS = [timm_with_registers, dinov2_with_registers, dinov2_with_registers_folder]
LAYOUTS = [
    published, timm, mae, dino, dinov2, dinov2_run, mmpretrain_with_layer_scale,
    vit_folder, mae_folder, dinov2_folder, *WITH_REGISTERS,
]  # fmt: skip


@pytest.mark.parametrize('make', LAYOUTS, ids=lambda make: make.__name__)
def test_features_equal_those_of_the_source(make, tmp_path):
    path, source = make(tmp_path)
    vit = make_vit(path, num_registers=3 if make in WITH_REGISTERS else 0)
    vit.init_weights()
    vit.eval()
    with torch.no_grad():
        expected, features = source(images()), vit(images())[-1]
    assert expected.std(dim=0).max() > 0.1  # images have different features
    assert torch.allclose(features, expected, atol=1e-5)


def test_registers_are_exported_in_programs_only(tmp_path):
    path, source = dinov2_with_registers_folder(tmp_path)
    spec = read_backbone(path).spec
    assert spec.num_registers == 3
    convert_checkpoint(path, tmp_path / 'x.pt2', 'torch-export')
    with torch.no_grad():
        found = torch.export.load(tmp_path / 'x.pt2').module()(images())
        assert torch.allclose(found, source(images()), atol=1e-4)
        vit = build_vit(spec, out_type='raw')
        assert vit(images())[-1].shape == (3, 1 + 4 * 4, 24)
    assert vit.get_layer_depth('register_tokens') == vit.get_layer_depth('cls_token')
    with pytest.raises(ValueError, match='register tokens, with which files for timm cannot'):
        convert_checkpoint(path, tmp_path / 'x.safetensors', 'timm')
    with pytest.raises(ValueError, match='unexpected: register_tokens'):
        load_backbone(build_vit(SPEC), path)


def test_the_student_of_dino_is_the_query_encoder(tmp_path):
    path, _ = dino(tmp_path)
    backbone = read_backbone(path, 'query', num_heads=3)
    assert (backbone.layout.name, backbone.layout.prefix) == ('dino', 'student.backbone.')
    assert torch.equal(backbone.state_dict['pos_embed'], make_timm_vit(seed=1).pos_embed)
    assert read_backbone(path, num_heads=3).layout.prefix == 'teacher.backbone.'
    with pytest.raises(ValueError, match=r"No encoder has the prefix 'x\.'; there are \['student"):
        read_backbone(path, prefix='x.')


def test_ambiguous_encoders_are_an_error_and_changed_weights_are_reported(tmp_path):
    report = str(load_backbone(build_vit(SPEC), dinov2(tmp_path)[0]))
    assert 'layer scale: 4 factors multiplied into the weights' in report  # two per block
    assert 'dropped on purpose: mask_token (1)' in report
    assert 'assumed: num_heads=3 (not in the file; the model has them)' in report
    state = {}
    for name in ('one', 'two'):
        state |= {f'{name}.{key}': value for key, value in make_timm_vit().state_dict().items()}
    with pytest.raises(ValueError, match=r"several encoders, \['one\.', 'two\.'\].*prefix="):
        read_backbone(save(tmp_path, state))


@pytest.mark.parametrize('num_channels', [1, 2, 5])
def test_a_patch_embedding_of_3_channels_is_adapted_to_any_number(num_channels, tmp_path):
    path, source = timm(tmp_path)
    vit = make_vit(path, in_channels=num_channels)
    vit.init_weights()
    vit.eval()
    grey = images()[:, :1]
    with torch.no_grad():
        expected = source(grey.expand(-1, 3, -1, -1))
        features = vit(grey.expand(-1, num_channels, -1, -1))[-1]
        kernels = source.patch_embed.proj.weight
        given = vit.patch_embed.projection.weight
    if num_channels == 1:  # as for three equal channels
        assert torch.allclose(features, expected, atol=1e-5)
    for channel in range(num_channels if num_channels > 1 else 0):
        assert torch.allclose(given[:, channel], kernels[:, channel % 3] * 3 / num_channels)


def test_a_patch_embedding_of_other_channels_is_not_adapted(tmp_path):
    four = make_vit(timm(tmp_path)[0], in_channels=4)
    four.init_weights()
    torch.save(four.state_dict(), tmp_path / 'four.pth')
    again = make_vit(tmp_path / 'four.pth', in_channels=4)
    again.init_weights()
    assert torch.equal(again.patch_embed.projection.weight, four.patch_embed.projection.weight)
    with pytest.raises(ValueError, match=r'\(24, 4, 4, 4\) instead of \(24, 1, 4, 4\)'):
        make_vit(tmp_path / 'four.pth', in_channels=1).init_weights()


def test_a_list_of_init_cfg_is_loaded_strictly(tmp_path):
    state = make_timm_vit().state_dict()
    state = {key: value for key, value in state.items() if not key.startswith('blocks.1')}
    vit = make_vit(save(tmp_path, state))
    vit.init_cfg = [dict(type='Constant', val=0.0, layer='Linear'), vit.init_cfg]
    with pytest.raises(ValueError, match='num_layers: 1 in the file, 2 in the model'):
        vit.init_weights()
