"""Exported programs, the preprocessing of images, and LayerNorm's eps."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTConfig, ViTModel

from mmpatchmix.checkpoints import read_backbone
from mmpatchmix.checkpoints.vit_spec import Preprocessing, read_preprocessing
from mmpatchmix.convert.convert_checkpoint import convert_checkpoint
from mmpatchmix.convert.features import build_vit
from mmpatchmix.models.load_backbone import load_backbone
from tests.checkpoints.vits import SPEC, images, randomise

CFG = """
model = dict(
    backbone=dict(type='mmpatchmix.PatchMixViT'),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], num_mix=2, std=[4.0, 5.0, 6.0]))
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root=some_function(),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(edge='short', scale=20, type='ResizeEdge'),
            dict(crop_size=16, type='CenterCrop'),
        ]))
"""
OURS = Preprocessing(20, 16, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def run_onnx(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(['features'], {'images': pixels.numpy()})[0]


def run_torch(path, pixels):
    with torch.no_grad():
        return torch.export.load(path).module()(pixels).numpy()


@pytest.mark.parametrize(
    ('target', 'name', 'run', 'size'),
    [('onnx', 'x.onnx', run_onnx, 32), ('torch-export', 'x.pt2', run_torch, 16)],
)
def test_programs_give_the_features_of_the_vit(own, tmp_path, monkeypatch, target, name, run, size):
    path, _, momentum = own
    conversion = convert_checkpoint(path, tmp_path / name, target, img_size=size)
    assert conversion.target_difference < 1e-4
    vit = build_vit(SPEC)
    vit.load_state_dict(momentum)
    for count in (1, 5):  # not the number it was exported with
        pixels = images(size, count)
        with torch.no_grad():
            expected = vit(pixels)[-1].numpy()  # interpolates positions in its forward pass
        assert np.allclose(run(tmp_path / name, pixels), expected, atol=1e-4)
    said = json.loads((tmp_path / 'x.preprocessing.json').read_text())
    assert (said['crop'], said['resize']) == (size, size * 18 // 16)
    assert said['input'] == f'float32 (N, 3, {size}, {size})'
    with pytest.raises(FileExistsError, match='exists already'):
        convert_checkpoint(path, tmp_path / name, target)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install .mmpatchmix\[export\]'):
        convert_checkpoint(path, tmp_path / 'y.onnx', 'onnx')


def test_a_program_of_five_channels_describes_them(tmp_path):
    vit = randomise(build_vit(SPEC, in_channels=5))
    arch = ', '.join(f'{key}={value}' for key, value in SPEC.arch.items())
    text = f"""
model = dict(
    backbone=dict(arch=dict({arch}), patch_size=4, img_size=16),
    data_preprocessor=dict(mean={[9.0] * 5}, std={[2.0] * 5}))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmpatchmix.LoadAnyImage', channels=5, value_range='0,4095'),
    dict(type='mmpatchmix.ResizeCentre', size=16)]))
"""
    state = {f'backbone.{key}': value for key, value in vit.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(cfg=text)), tmp_path / 'own.pth')
    convert_checkpoint(tmp_path / 'own.pth', tmp_path / 'x.pt2', 'torch-export')
    pixels = torch.randn(2, 5, 16, 16)
    with torch.no_grad():
        expected = vit(pixels)[-1].numpy()
    assert np.allclose(run_torch(tmp_path / 'x.pt2', pixels), expected, atol=1e-4)
    said = json.loads((tmp_path / 'x.preprocessing.json').read_text())
    assert said['input'] == 'float32 (N, 5, 16, 16)' and said['mean'] == [9.0] * 5
    assert (said['resize'], said['crop']) == (18, 16)
    assert "5 channels as in the file, of which value_range='0,4095'" in said['channels']
    with pytest.raises(ValueError, match='images of 5 channels; for timm files are'):
        convert_checkpoint(tmp_path / 'own.pth', tmp_path / 'x.safetensors', 'timm')


def test_preprocessing_is_read_from_the_config_and_survives_conversions(own, tmp_path):
    content = torch.load(own[0])
    arch = content['meta']['cfg'][len('model = dict(') : -1]
    content['meta']['cfg'] = CFG.replace("backbone=dict(type='mmpatchmix.PatchMixViT')", arch)
    torch.save(content, tmp_path / 'ours.pth')
    assert read_backbone(tmp_path / 'ours.pth').preprocessing == OURS
    assert OURS.to(32) == Preprocessing(40, 32, OURS.mean, OURS.std)
    assert read_preprocessing(dict(cfg=CFG.replace('ResizeEdge', 'Other')), 16)[0].resize == 16
    assumed, note = read_preprocessing({}, 224)
    assert (assumed.resize, assumed.mean[0]) == (256, 123.675) and 'ImageNet' in note
    for target, name in (('timm', 'x.safetensors'), ('mmdet', 'x.pth'), ('transformers', 'hf')):
        convert_checkpoint(tmp_path / 'ours.pth', tmp_path / name, target)
        assert read_backbone(tmp_path / name).preprocessing == OURS
    # Without our metadata, from the files of transformers.
    weights = tmp_path / 'hf' / 'model.safetensors'
    save_file(load_file(weights), weights, {'format': 'pt'})
    found = read_backbone(tmp_path / 'hf').preprocessing
    assert (found.resize, found.crop) == (20, 16)
    assert (found.mean, found.std) == (OURS.mean, OURS.std)  # not 123.67499999999998


def test_the_image_processor_of_transformers_equals_the_test_view(own, tmp_path):
    convert_checkpoint(own[0], tmp_path / 'hf', 'transformers')
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    photo = small.resize((70, 50), Image.Resampling.BICUBIC)
    processor = AutoImageProcessor.from_pretrained(tmp_path / 'hf')
    found = processor(photo, return_tensors='pt')['pixel_values'][0]
    # The test view by hand: 18 pixels on the shorter side, the middle 16.
    resized = photo.resize((25, 18), Image.Resampling.BICUBIC).crop((4, 1, 20, 17))
    expected = (np.asarray(resized, np.float32) - (123.675, 116.28, 103.53)) / (
        58.395, 57.12, 57.375
    )  # fmt: skip
    difference = np.abs(found.numpy() - expected.transpose(2, 0, 1))
    assert found.shape == (3, 16, 16) and np.ptp(expected) > 1
    assert difference.max() < 3 / 57  # grey levels: resizing in uint8 rounds in its own way


@pytest.fixture
def hub_folder(tmp_path):
    """A ViT with the eps of transformers, 1e-12, and weights so small that it matters."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96)
    config = ViTConfig(**sizes, patch_size=4, image_size=16)
    model = ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            parameter.mul_(0.01)
    assert config.layer_norm_eps == 1e-12
    model.save_pretrained(tmp_path / 'hub')
    return tmp_path / 'hub', model


def test_the_eps_of_transformers_is_kept_and_reported(hub_folder, tmp_path):
    folder, model = hub_folder
    conversion = convert_checkpoint(folder, tmp_path / 'x.pth', 'mmdet')
    assert conversion.source_difference < 1e-5 and conversion.spec.norm_eps == 1e-12
    text = str(conversion)
    assert 'LayerNorm of this network adds 1e-12' in text
    assert "norm_cfg=dict(type='LN', eps=1e-12)" in text
    with torch.no_grad():
        expected = model(images()).last_hidden_state[:, 0]
        state = torch.load(tmp_path / 'x.pth')['state_dict']
        for eps, is_same in ((1e-12, True), (1e-6, False)):
            vit = build_vit(replace(SPEC, norm_eps=eps))
            vit.load_state_dict(state)
            assert torch.allclose(vit(images())[-1], expected, atol=1e-4) is is_same
    # And back, through a file of ours.
    convert_checkpoint(tmp_path / 'x.pth', tmp_path / 'back', 'transformers')
    assert json.loads((tmp_path / 'back' / 'config.json').read_text())['layer_norm_eps'] == 1e-12


def test_another_eps_in_the_model_is_reported(hub_folder):
    report = load_backbone(build_vit(SPEC), hub_folder[0])
    assert 'LayerNorm adds 1e-06 to the variance, as in the model, and not 1e-12' in str(report)
    same = build_vit(replace(SPEC, norm_eps=1e-12))
    assert 'LayerNorm' not in str(load_backbone(same, hub_folder[0]))
    config = json.loads((hub_folder[0] / 'config.json').read_text())
    config.pop('layer_norm_eps', None)
    (hub_folder[0] / 'config.json').write_text(json.dumps(config))
    assert read_backbone(hub_folder[0]).spec.norm_eps == 1e-12  # the default of transformers


def test_the_card_contains_the_metadata_and_code_that_computes_the_features(
    own, tmp_path, monkeypatch
):
    path, _, momentum = own
    content = torch.load(path)
    content['meta'] |= dict(epoch=80, iter=880, time='20260101_000000')
    torch.save(content, path)
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(path, 'my-vit', 'transformers')
    card = (tmp_path / 'my-vit' / 'README.md').read_text()
    _, header, text = card.split('---\n', 2)
    header = yaml.safe_load(header)
    assert header['library_name'] == 'transformers' and 'license' not in header
    for line in (
        '# my-vit', '- file: own.pth', '- encoder: momentum_encoder.backbone', '- epochs: 80',
        '2 layers, 3 heads, patches of 4 pixels', 'mean 123.675, 116.28, 103.53',
    ):  # fmt: skip
        assert line in text, line
    assert 'the licence of the weights' in text and '{' not in text
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (18, 18, 3), dtype=np.uint8)  # resized to 18, cut to 16
    Image.fromarray(image).save('image.jpg', quality=100)
    (code,) = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    names = {}
    exec(code, names)
    vit = build_vit(SPEC)
    vit.load_state_dict(momentum)
    pixels = torch.from_numpy(np.array(Image.open('image.jpg'))).permute(2, 0, 1).float()
    imagenet = Preprocessing(18, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (imagenet.mean, imagenet.std))
    with torch.no_grad():
        expected = vit(((pixels - mean) / std)[None, :, 1:17, 1:17])[-1]
    assert torch.allclose(names['features'], expected, atol=1e-4)
