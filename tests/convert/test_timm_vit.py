"""Export of ViTs of timm, from a checkpoint of ours."""

import json

import numpy as np
import pytest
import timm
import torch
from test_export import run_onnx, run_torch

from mmpatchmix.convert.convert_checkpoint import convert_checkpoint
from tests.models.test_timm_vit import DINOV3, FAMILIES, SMALL, pictures, randomise, timm_feature


def save_run(name, path):
    """Write a checkpoint whose momentum encoder has weights of its own; return the latter."""
    query, momentum = (
        randomise(timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL), scale)
        for scale in (0.1, 0.2)
    )
    state = {f'backbone.model.{key}': value for key, value in query.state_dict().items()}
    for key, value in momentum.state_dict().items():
        state[f'momentum_encoder.backbone.model.{key}'] = value
    state['neck.fc0.weight'] = torch.ones(2)
    backbone = f"dict(type='mmpatchmix.TimmViT', model='{name}', options={SMALL})"
    preprocessor = 'dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])'
    cfg = f'model = dict(backbone={backbone}, data_preprocessor={preprocessor})'
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg)), path)
    return query, momentum


@pytest.mark.parametrize('name', FAMILIES)
def test_the_momentum_encoder_is_exported(name, tmp_path):
    _, momentum = save_run(name, tmp_path / 'run.pth')
    report = convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'x.safetensors', 'timm')
    assert f'{name}: features differ by up to 0.0e+00' in report
    copy = timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL).eval()
    timm.models.load_checkpoint(copy, str(tmp_path / 'x.safetensors'))
    assert torch.equal(timm_feature(copy, pictures(24)), timm_feature(momentum, pictures(24)))
    convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'x.pt2', 'torch-export')
    found = run_torch(tmp_path / 'x.pt2', pictures(32, 5))
    assert np.allclose(found, timm_feature(momentum, pictures(32, 5)), atol=1e-4)


def test_learned_positions_are_interpolated_to_another_size(tmp_path):
    name = 'vit_tiny_patch16_224'
    _, momentum = save_run(name, tmp_path / 'run.pth')
    convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'x.safetensors', 'timm', img_size=48)
    copy = timm.create_model(name, num_classes=0, **SMALL | dict(img_size=48)).eval()
    timm.models.load_checkpoint(copy, str(tmp_path / 'x.safetensors'))
    expected = timm_feature(momentum, pictures(48))  # which interpolates
    assert np.allclose(timm_feature(copy, pictures(48)), expected, atol=1e-5)


def test_onnx_of_the_query_encoder_at_another_size(tmp_path):
    query, _ = save_run(DINOV3, tmp_path / 'run.pth')
    convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'x.onnx', 'onnx', 'query', img_size=24)
    found = run_onnx(tmp_path / 'x.onnx', pictures(24, 5))
    assert np.allclose(found, timm_feature(query, pictures(24, 5)), atol=1e-4)
    preprocessing = json.loads((tmp_path / 'x.preprocessing.json').read_text())
    assert preprocessing['crop'] == 24 and preprocessing['mean'] == [1.0, 2.0, 3.0]


def test_other_targets_are_refused(tmp_path):
    save_run(DINOV3, tmp_path / 'run.pth')
    with pytest.raises(ValueError, match='convert --to timm, onnx or torch-export'):
        convert_checkpoint(tmp_path / 'run.pth', tmp_path / 'hf', 'transformers')
    assert not (tmp_path / 'hf').exists()
