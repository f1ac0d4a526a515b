from dataclasses import asdict, replace

import pytest
import torch
from mmpretrain.models.backbones import VisionTransformer

from mmpatchmix.checkpoints import match_state_dict, read_backbone
from mmpatchmix.convert.features import build_vit
from mmpatchmix.models import PatchMixViT
from mmpatchmix.models.load_backbone import load_backbone
from tests.checkpoints.vits import (
    SPEC,
    hugging_face,
    make_published_checkpoint,
    make_timm_vit,
    make_vit,
    randomise,
    save,
)


@pytest.fixture
def published(tmp_path):
    content = make_published_checkpoint(make_timm_vit(seed=1), make_timm_vit(seed=2))
    # The number of heads, as in files of ours.
    content['meta'] = dict(mmpatchmix=asdict(SPEC))
    torch.save(content, tmp_path / 'published.pth')
    return tmp_path / 'published.pth'


def test_another_network_is_refused_and_the_model_unchanged(published):
    with pytest.raises(ValueError, match='num_heads: 3 in the file, 4 in the model'):
        load_backbone(build_vit(replace(SPEC, num_heads=4)), published)
    vit = randomise(build_vit(replace(SPEC, patch_size=8)), seed=5)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    message = r'wrong shape: patch_embed.projection.weight: \(24, 3, 4, 4\)'
    with pytest.raises(ValueError, match=message):
        load_backbone(vit, published)
    for key, value in vit.state_dict().items():
        assert torch.equal(value, before[key])


def test_additional_parts_of_the_model_have_to_be_named(published):
    vit = build_vit(SPEC)
    vit.layers[0].attn.relative = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r'missing: layers\.0\.attn\.relative'):
        load_backbone(vit, published)
    load_backbone(vit, published, new=('attn.relative',))
    assert vit.layers[0].attn.relative.tolist() == [1, 1, 1]
    del vit.ln1
    with pytest.raises(ValueError, match=r'unexpected: ln1\.weight, ln1\.bias'):
        load_backbone(vit, published, new=('attn.relative',))
    report = load_backbone(vit, published, drop=('ln1.',), new=('attn.relative',))
    assert report.dropped[-2:] == ['ln1.weight', 'ln1.bias']


@pytest.mark.parametrize(('num_registers', 'in_channels'), [(0, 3), (2, 1)])
def test_parameter_shapes_are_those_of_the_network(num_registers, in_channels):
    spec = replace(SPEC, num_registers=num_registers, feedforward_channels=40)
    state = build_vit(spec, in_channels=in_channels).state_dict()
    expected = [(key, tuple(value.shape)) for key, value in state.items()]
    assert list(spec.parameter_shapes(in_channels).items()) == expected


def test_match_state_dict_sorts_every_key():
    state = dict(a=torch.ones(2), b=torch.ones(3), c=torch.ones(1), extra=torch.ones(1))
    wanted = {key: torch.empty(size) for key, size in dict(a=2, b=2, d=1, fresh=1).items()}
    taken, report = match_state_dict(state, wanted, drop=('c',), optional=('fresh',))
    assert list(taken) == ['a'] == report.used
    assert report.dropped == ['c'] and report.unexpected == ['extra'] and report.missing == ['d']
    assert report.wrong_shape == ['b: (3,) instead of (2,)']
    with pytest.raises(ValueError, match=r'X; nothing was loaded\. Y\n(.|\n)*missing: d\n'):
        report.raise_unless_fits('X', 'Y')


def vit_with(**extra):
    return make_timm_vit().state_dict() | extra


def without(*names):
    return {key: value for key, value in vit_with().items() if not key.startswith(names)}


REFUSED = {
    'rotary positions': without('pos_embed') | {'rope_embed.periods': torch.ones(4)},
    'no learned positions; if they are rotary': without('pos_embed'),
    'a distillation token': vit_with(dist_token=torch.ones(1, 1, 24)),
    'gated feed-forward': without('blocks.0.mlp') | {'blocks.0.mlp.w12.weight': torch.ones(2)},
    'a norm of the mean': without('norm.') | {'fc_norm.weight': torch.ones(24)},
    'a norm of averaged patch tokens': VisionTransformer(
        arch=dict(SPEC.arch), img_size=16, patch_size=4, out_type='avg_featmap'
    ).state_dict(),
    'norms of queries': vit_with(**{'blocks.0.attn.q_norm.weight': torch.ones(8)}),
}


@pytest.mark.parametrize('reason', REFUSED)
def test_other_networks_are_refused_with_the_reason(reason, tmp_path):
    vit = make_vit(save(tmp_path, REFUSED[reason]))
    with pytest.raises(ValueError, match=f'The file has {reason}'):
        vit.init_weights()


def test_folders_with_another_activation_are_refused(tmp_path):
    pytest.importorskip('transformers')
    path, _ = hugging_face(tmp_path, 'ViTModel', 'ViTConfig', hidden_act='gelu_new')
    with pytest.raises(ValueError, match="hidden_act='gelu_new'"):
        read_backbone(path)


def test_positions_of_a_square_are_resized_to_a_rectangle_of_as_many(tmp_path):
    spec = replace(SPEC, img_size=4 * SPEC.patch_size)
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None]  # of each patch of 4 x 4
    vit = build_vit(spec)
    vit.pos_embed.data[:, 1:] = rows
    content = dict(state_dict=vit.state_dict(), meta=dict(mmpatchmix=asdict(spec)))
    torch.save(content, tmp_path / 'square.pth')
    size = (2 * SPEC.patch_size, 8 * SPEC.patch_size)
    wide = PatchMixViT(arch=spec.arch, img_size=size, patch_size=SPEC.patch_size)
    load_backbone(wide, tmp_path / 'square.pth')
    found = wide.pos_embed[0, 1:, 0].view(2, 8)
    assert (found == found[:, :1]).all() and 0 < found[0, 0] < 1 and 2 < found[1, 0] < 3
