import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch import nn

from mmpatchmix.checkpoints import read_checkpoint
from mmpatchmix.checkpoints.vit_spec import spec_from_mmengine


def test_history_of_mmengine_is_read_without_its_classes(tmp_path):
    history = HistoryBuffer()
    history.update(1.5)
    content = dict(
        state_dict=dict(weight=torch.arange(3.0)),
        meta=dict(epoch=7, cfg='x = 1'),
        message_hub=dict(
            log_scalars={'train/loss': history},
            runtime_info=dict(best=np.float64(3), last=np.arange(3), flag=np.bool_(True)),
        ),
    )
    torch.save(content, tmp_path / 'epoch.pth')
    state, meta = read_checkpoint(tmp_path / 'epoch.pth')
    assert state['weight'].tolist() == [0, 1, 2]
    assert meta['epoch'] == 7


@pytest.mark.parametrize('key', ['state_dict', 'model', 'teacher', None])
def test_wrappings(tmp_path, key):
    state = dict(weight=torch.ones(2))
    torch.save({key: state, 'epoch': 3} if key else state | dict(epoch=3), tmp_path / 'x.pth')
    expected = 'teacher.weight' if key == 'teacher' else 'weight'
    assert list(read_checkpoint(tmp_path / 'x.pth').state_dict) == [expected]


def test_safetensors_with_metadata(tmp_path):
    save_file(dict(weight=torch.ones(2)), tmp_path / 'x.safetensors', {'mmpatchmix': '{"a": 1}'})
    state, meta = read_checkpoint(tmp_path / 'x.safetensors')
    assert state['weight'].tolist() == [1, 1] and meta['mmpatchmix'] == dict(a=1)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_pickled_model_is_refused_with_a_way_out(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / 'model.pth')
    with pytest.raises(ValueError, match=r'torch.nn.modules.linear.Linear(.|\n)*state_dict\(\)'):
        read_checkpoint(tmp_path / 'model.pth')


@pytest.mark.parametrize('place', ['state_dict', 'message_hub'])
def test_code_in_a_file_is_not_run(tmp_path, place):
    content = dict(state_dict=dict(weight=torch.ones(2)))
    content.setdefault(place, {})['trap'] = Trap(tmp_path / 'sprung')
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'io\.open'):
        read_checkpoint(tmp_path / 'x.pth')
    assert not (tmp_path / 'sprung').exists()


class Getattr:
    """What mmengine's own list of safe classes would let through."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, 'mean')


def test_getattr_in_a_file_reaches_nothing(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1), b=Getattr())), tmp_path / 'x.pth')
    assert list(read_checkpoint(tmp_path / 'x.pth').state_dict) == ['a']


def test_missing_damaged_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        read_checkpoint(tmp_path / 'none.pth')
    for name in ('text.pth', 'text.safetensors'):
        (tmp_path / name).write_text('not a checkpoint')
        with pytest.raises(ValueError, match='damaged'):
            read_checkpoint(tmp_path / name)
    torch.save(dict(state_dict=dict(weight=torch.ones(1000))), tmp_path / 'whole.pth')
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:2000])
    with pytest.raises(ValueError, match='damaged'):
        read_checkpoint(tmp_path / 'half.pth')
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
def test_whatever_is_damaged_the_file_is_named(tmp_path, zipped):
    """torch stumbles over such files with nine kinds of errors, KeyError among them."""
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
            read_checkpoint(tmp_path / 'damaged.pth')  # a value may be what was changed
        except ValueError as error:
            assert str(tmp_path / 'damaged.pth') in str(error)
            num_refused += 1
    assert num_refused > 20


def test_the_package_can_be_imported_first():
    code = 'from mmpatchmix.checkpoints import convert_checkpoint'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_config_text_is_read_and_not_run(tmp_path):
    text = (
        f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
        "model = dict(\n    type='PatchMix',\n    backbone=dict(\n"
        '        arch=dict(embed_dims=24, num_heads=3), patch_size=4, img_size=16,\n'
        '        drop_path_rate=compute()))\n'
    )
    expected = dict(embed_dims=24, num_heads=3, patch_size=4, img_size=16)
    assert spec_from_mmengine(dict(cfg=text)) == expected
    assert not (tmp_path / 'sprung').exists()
    assert spec_from_mmengine(dict(cfg='model = 3')) == {}
    assert spec_from_mmengine(dict(cfg='model = (')) == {}
    assert spec_from_mmengine({}) == {}
    named = "model = dict(backbone=dict(arch='deit-small', patch_size=16))"
    assert spec_from_mmengine(dict(cfg=named))['num_heads'] == 6
