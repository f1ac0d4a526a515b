"""The model card in a folder for transformers, and the code in it, which is executed."""

import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from vits import SPEC

from mmpatchmix.checkpoints.preprocessing import Preprocessing
from mmpatchmix.convert.convert_checkpoint import convert_checkpoint
from mmpatchmix.convert.features import build_vit


@pytest.fixture
def card(own, tmp_path, monkeypatch):
    path, _, _ = own
    content = torch.load(path)
    content['meta'] |= dict(epoch=80, iter=880, time='20260101_000000')
    torch.save(content, path)
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(path, 'my-vit', 'transformers')
    return (tmp_path / 'my-vit' / 'README.md').read_text()


def test_the_card_contains_the_metadata(card):
    _, header, text = card.split('---\n', 2)
    header = yaml.safe_load(header)
    assert header['library_name'] == 'transformers' and 'license' not in header
    for line in (
        '# my-vit',
        '- file: own.pth',
        '- encoder: momentum_encoder.backbone',
        '- epochs: 80',
        '- iterations: 880',
        '2 layers, 3 heads, patches of 4 pixels',
        'mean 123.675, 116.28, 103.53',
    ):
        assert line in text, line
    assert 'the licence of the weights' in text and '{' not in text


def test_its_code_computes_the_features_of_the_source(card, own, tmp_path):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (18, 18, 3), dtype=np.uint8)  # resized to 18, cut to 16
    Image.fromarray(image).save('image.jpg', quality=100)
    (code,) = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    names = {}
    exec(code, names)
    vit = build_vit(SPEC)
    vit.load_state_dict(own[2])
    pixels = torch.from_numpy(np.array(Image.open('image.jpg'))).permute(2, 0, 1).float()
    preprocessing = Preprocessing(18, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    with torch.no_grad():
        expected = vit(((pixels - mean) / std)[None, :, 1:17, 1:17])[-1]
    assert torch.allclose(names['features'], expected, atol=1e-4)
