"""Formats of checkpoint files; ``tests/compat/test_safe_loading.py`` has what torch files hold."""

import random

import pytest
import torch
from safetensors.torch import save_file

from mmpatchmix.checkpoints import read_checkpoint
from mmpatchmix.checkpoints.vit_spec import read_stated_spec


def test_missing_damaged_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        read_checkpoint(tmp_path / 'none.pth')
    (tmp_path / 'config.json').write_text('{"hidden_size": 24')
    save_file(dict(weight=torch.ones(2)), tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=r'config\.json is damaged'):
        read_checkpoint(tmp_path)
    (tmp_path / 'config.json').unlink()
    torch.save(dict(epoch=3), tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match=r"no tensors; its keys are \['epoch'\]"):
        read_checkpoint(tmp_path / 'empty.pth')
    torch.save(torch.ones(1), tmp_path / 'tensor.pth')
    with pytest.raises(ValueError, match='holds a Tensor'):
        read_checkpoint(tmp_path / 'tensor.pth')
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_every_damage_is_reported_with_the_name_of_the_file(tmp_path, zipped):
    """torch raises nine kinds of errors for such files, KeyError among them."""
    state = {f'layer{i}.weight': torch.ones(5, 5) for i in range(5)}
    path = tmp_path / 'whole.pth'
    torch.save(dict(state_dict=state), path, _use_new_zipfile_serialization=zipped)
    generator = random.Random(0)
    num_refused = 0
    for _ in range(100):
        content = bytearray(path.read_bytes())
        for _ in range(10):
            content[generator.randrange(len(content))] = generator.randrange(256)
        (tmp_path / 'damaged.pth').write_bytes(content)
        try:
            read_checkpoint(tmp_path / 'damaged.pth')  # it succeeds if only a value was changed
        except ValueError as error:
            assert str(tmp_path / 'damaged.pth') in str(error)
            num_refused += 1
    assert num_refused > 20


def test_the_config_text_is_parsed_and_not_executed(tmp_path):
    text = (
        f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
        "model = dict(\n    type='PatchMix',\n    backbone=dict(\n"
        '        arch=dict(embed_dims=24, num_heads=3), patch_size=4, img_size=16,\n'
        '        drop_path_rate=compute()))\n'
    )
    expected = dict(embed_dims=24, num_heads=3, patch_size=4, img_size=16)
    assert read_stated_spec(dict(cfg=text)) == expected
    assert not (tmp_path / 'sprung').exists()
    assert read_stated_spec(dict(cfg='model = 3')) == {}
    assert read_stated_spec(dict(cfg='model = (')) == {}
    assert read_stated_spec({}) == {}
    named = "model = dict(backbone=dict(arch='deit-small', patch_size=16))"
    assert read_stated_spec(dict(cfg=named))['num_heads'] == 6
