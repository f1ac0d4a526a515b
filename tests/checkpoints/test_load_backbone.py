from dataclasses import asdict, replace

import pytest
import torch
from vits import SPEC, images, make_published_checkpoint, make_timm_vit, randomise

from mmpatchmix.checkpoints import match_state_dict, read_backbone
from mmpatchmix.convert.features import build_vit
from mmpatchmix.models.load_backbone import load_backbone


@pytest.fixture
def published(tmp_path):
    content = make_published_checkpoint(make_timm_vit(seed=1), make_timm_vit(seed=2))
    # The number of heads, as in files of ours.
    content['meta'] = dict(mmpatchmix=asdict(SPEC))
    torch.save(content, tmp_path / 'published.pth')
    return tmp_path / 'published.pth'


def test_all_weights_are_loaded_and_reported(published):
    vit = randomise(build_vit(SPEC), seed=5)
    report = load_backbone(vit, published)
    with torch.no_grad():
        assert torch.allclose(vit(images())[-1], make_timm_vit(seed=2)(images()), atol=1e-5)
    assert len(report.used) == len(vit.state_dict()) and len(report.dropped) > 0


def test_positions_are_interpolated_into_a_larger_model(published):
    vit = build_vit(replace(SPEC, img_size=32))
    load_backbone(vit, published)
    small = build_vit(SPEC)
    load_backbone(small, published)
    with torch.no_grad():
        assert torch.allclose(vit(images(32))[-1], small(images(32))[-1], atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_heads=4), 'num_heads: 3 in the file, 4 in the model'),
        (dict(num_layers=3), 'num_layers: 2 in the file, 3 in the model'),
        (dict(embed_dims=48), 'embed_dims: 24 in the file, 48 in the model'),
        (dict(patch_size=8), r'wrong shape: patch_embed.projection.weight: \(24, 3, 4, 4\)'),
    ],
)
def test_another_network_is_refused_and_the_model_unchanged(published, change, message):
    vit = randomise(build_vit(replace(SPEC, **change)), seed=5)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
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


def test_own_classifier_checkpoint(tmp_path):
    vit = randomise(build_vit(SPEC))
    state = {f'backbone.{key}': value for key, value in vit.state_dict().items()}
    state |= {'head.layers.head.weight': torch.ones(2), 'data_preprocessor.mean': torch.ones(3)}
    torch.save(dict(state_dict=state), tmp_path / 'classifier.pth')
    assert len(read_backbone(tmp_path / 'classifier.pth', num_heads=3).report.dropped) == 2
