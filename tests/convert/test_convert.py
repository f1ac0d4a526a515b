import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmpatchmix.checkpoints import read_backbone
from mmpatchmix.cli import convert
from mmpatchmix.convert.convert_checkpoint import convert_checkpoint
from tests.checkpoints.vits import SPEC, make_published_checkpoint, make_timm_vit, save

ENDINGS = dict(mmpretrain='.pth', mmdet='.pth', timm='.safetensors', transformers='')


def assert_same(state, expected):
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize('target', ENDINGS)
def test_round_trips_are_exact(own, tmp_path, target):
    path, query, momentum = own
    encoder = 'query' if target == 'timm' else 'momentum'
    there = tmp_path / f'there{ENDINGS[target]}'
    conversion = convert_checkpoint(path, there, target, encoder=encoder)
    assert conversion.spec == SPEC
    # And back: the written file states its heads.
    back = tmp_path / 'back.pth'
    convert_checkpoint(there, back, 'mmdet')
    assert_same(torch.load(back)['state_dict'], query if encoder == 'query' else momentum)
    assert read_backbone(there).spec == SPEC


@pytest.mark.parametrize('target', ['timm', 'transformers'])
def test_files_in_half_precision_are_converted_in_float32(tmp_path, target):
    state = {key: value.bfloat16() for key, value in make_timm_vit().state_dict().items()}
    path = save(tmp_path, dict(state_dict=state, meta=dict(mmpatchmix=asdict(SPEC))))
    out = tmp_path / f'out{ENDINGS[target]}'
    convert_checkpoint(path, out, target)
    if target == 'transformers':  # which loads a folder in the type that its weights have
        file = out / 'model.safetensors'
        save_file({key: w.bfloat16() for key, w in load_file(file).items()}, file)
        convert_checkpoint(out, tmp_path / 'back.pth', 'mmdet')
        out = tmp_path / 'back.pth'
    assert {w.dtype for w in read_backbone(out).state_dict.values()} == {torch.float32}


def test_faulty_keys_are_named_as_in_the_file(tmp_path):
    content = make_published_checkpoint(make_timm_vit(), make_timm_vit(), wrapped=False)
    del content['state_dict']['momentum_encoder.blocks.0.norm2.bias']
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=r'missing: momentum_encoder\.blocks\.0\.norm2\.bias'):
        convert_checkpoint(path, tmp_path / 'y.pth', 'mmdet', num_heads=3)
    assert not (tmp_path / 'y.pth').exists()


def test_unknown_heads_are_an_error_and_assumed_ones_reported(tmp_path):
    torch.save(make_timm_vit().state_dict(), tmp_path / 'timm.pth')
    with pytest.raises(ValueError, match=r'Width 24 .* mmpatchmix convert .* --num-heads N'):
        read_backbone(tmp_path / 'timm.pth')
    with pytest.raises(ValueError, match='Width 24 with num_heads=5'):
        read_backbone(tmp_path / 'timm.pth', num_heads=5)
    small = make_timm_vit(replace(SPEC, embed_dims=384, num_heads=6, feedforward_channels=1536))
    for content, heads in ((small.state_dict(), 6), (make_published_checkpoint(small, small), 12)):
        backbone = read_backbone(save(tmp_path, content))
        assert backbone.spec.num_heads == heads
        assert f'assumed: num_heads={heads} (not in the file' in str(backbone.report)


def test_contradictions_between_weights_and_metadata_are_errors(own, tmp_path):
    with pytest.raises(ValueError, match='num_heads=3 by its own metadata, not 4'):
        read_backbone(own[0], num_heads=4)
    content = torch.load(own[0])
    config = content['meta']['cfg']
    for size, said in (('32', '32'), ('(8, 32)', r'\(8, 32\)'), ('[8, 32]', r'\[8, 32\]')):
        content['meta']['cfg'] = config.replace('img_size=16', f'img_size={size}')
        torch.save(content, tmp_path / 'odd.pth')
        with pytest.raises(ValueError, match=f'img_size is 16 in its weights and {said} in its m'):
            read_backbone(tmp_path / 'odd.pth')
    content['meta']['cfg'] = config.replace('img_size=16', 'img_size=(16, 16)')
    torch.save(content, tmp_path / 'odd.pth')
    assert read_backbone(tmp_path / 'odd.pth').spec.img_size == 16


def test_different_features_are_refused_and_nothing_is_kept(own, tmp_path, monkeypatch):
    value = 0.0
    monkeypatch.setattr(
        'mmpatchmix.convert.convert_checkpoint.features_of_file',
        lambda *_: lambda x: x.new_full((len(x), 24), value),
    )
    names = {'transformers': 'hf', 'mmdet': 'x.pth', 'torch-export': 'x.pt2'}
    for target, name in names.items():
        with pytest.raises(ValueError, match='not the same network'):
            convert_checkpoint(own[0], tmp_path / name, target)
        assert [path.name for path in tmp_path.iterdir()] == ['own.pth']
    value = float('nan')
    with pytest.raises(ValueError, match='differ by up to nan'):
        convert_checkpoint(own[0], tmp_path / 'x.pth', 'mmdet')


def test_invalid_arguments_are_refused(own, tmp_path):
    with pytest.raises(ValueError, match='target must be one of'):
        convert_checkpoint(own[0], tmp_path / 'x.pth', 'jax')
    with pytest.raises(ValueError, match=r'For mmdet the destination must be \.pth'):
        convert_checkpoint(own[0], tmp_path / 'x.safetensors', 'mmdet')
    with pytest.raises(FileExistsError, match='exists already'):
        convert_checkpoint(own[0], own[0], 'mmdet')
    with pytest.raises(ValueError, match="encoder must be 'momentum' or 'query'"):
        convert_checkpoint(own[0], tmp_path / 'x.pth', 'mmdet', encoder='key')
    with pytest.raises(ValueError, match='img_size=18 is not divisible'):
        convert_checkpoint(own[0], tmp_path / 'x.pth', 'mmdet', img_size=18)
    torch.save(dict(conv1=torch.ones(1)), tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match=r"known layout.*\['conv1'\]"):
        read_backbone(tmp_path / 'resnet.pth')


def test_a_missing_momentum_encoder_is_reported(own, tmp_path):
    content = torch.load(own[0])
    for key in [key for key in content['state_dict'] if 'momentum' in key]:
        del content['state_dict'][key]
    backbone = read_backbone(save(tmp_path, content))
    assert_same(backbone.state_dict, own[1])
    assert 'the file has no momentum encoder' in str(backbone.report)


def test_the_verb_prints_the_report(own, tmp_path, capsys):
    written = tmp_path / 'x.safetensors'
    command = [str(own[0]), str(written), '--to', 'timm', '--encoder', 'query']
    convert.main(command)
    printed = capsys.readouterr().out
    assert "layout 'own', encoder backbone." in printed
    assert 'missing: none' in printed and '(allowed: 1e-04)' in printed
    make_timm_vit().load_state_dict(load_file(written), strict=True)
    with pytest.raises(SystemExit, match=r'remove it or choose another name\.'):
        convert.main(command)
    (tmp_path / 'work').mkdir()
    own[0].rename(tmp_path / 'work' / 'epoch_3.pth')  # of a work dir the last one is converted
    convert.main([str(tmp_path / 'work'), str(tmp_path / 'x.pth'), '--to', 'mmdet'])
    assert f'wrote {tmp_path / "x.pth"}' in capsys.readouterr().out


def test_metadata_is_written(own, tmp_path):
    convert_checkpoint(own[0], tmp_path / 'hf', 'transformers')
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert (config['num_attention_heads'], config['patch_size'], config['image_size']) == (3, 4, 16)
    convert_checkpoint(own[0], tmp_path / 'x.pth', 'mmpretrain')
    expected = asdict(SPEC) | dict(
        source='own.pth', layout='own', encoder='momentum_encoder.backbone'
    )
    imagenet = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    expected['preprocessing'] = dict(resize=18, crop=16, values='RGB, from 0 to 255', **imagenet)
    assert torch.load(tmp_path / 'x.pth')['meta']['mmpatchmix'] == expected
