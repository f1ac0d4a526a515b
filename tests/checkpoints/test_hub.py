"""Weights by name, from a server on this machine that speaks the hub's protocol."""

import pickle
from dataclasses import asdict

import pytest
import torch
from hub_server import COMMIT, serve
from huggingface_hub import constants
from safetensors.torch import load_file
from vits import SPEC, hugging_face, make_published_checkpoint, make_timm_vit

from mmpatchmix.checkpoints import read_backbone, read_checkpoint
from mmpatchmix.cli import convert

FILE = 'pretrain/imagenet1k/vit-small.pth'
NAME = f'hf:lab/PatchMix:{FILE}'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The lab's repository and a server of it, with an empty cache; the requests."""
    path = tmp_path / 'hub/lab/PatchMix' / FILE
    path.parent.mkdir(parents=True)
    content = make_published_checkpoint(make_timm_vit(seed=1), make_timm_vit(seed=2))
    torch.save(content | dict(meta=dict(mmpatchmix=asdict(SPEC))), path)
    with serve(tmp_path / 'hub') as (address, requests):
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        template = f'{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        yield requests


def test_a_file_is_downloaded_once_and_read_offline(hub, monkeypatch):
    backbone = read_backbone(NAME)
    expected = make_timm_vit(seed=2).state_dict()  # of the momentum encoder
    assert torch.equal(backbone.state_dict['cls_token'], expected['cls_token'])
    assert sum(f'GET /lab/PatchMix/resolve/main/{FILE}' in line for line in hub) >= 1
    hub.clear()
    read_backbone(f'hf:lab/PatchMix@{COMMIT}:{FILE}')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    read_backbone(NAME)
    assert not hub  # the commit is in the cache, too
    with pytest.raises(OSError, match='LocalEntryNotFoundError') as error:
        read_checkpoint('hf:lab/PatchMix:other.pth')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['model.safetensors', 'pytorch_model.bin'])
def test_a_folder_of_transformers_is_its_files(kind, hub, tmp_path):
    folder, model = hugging_face(tmp_path, 'ViTModel', 'ViTConfig')
    if kind != 'model.safetensors':
        torch.save(load_file(folder / 'model.safetensors'), folder / kind)
        (folder / 'model.safetensors').unlink()
    (folder / 'notes.md').write_text('not needed')
    folder.rename(tmp_path / 'hub/lab/vit')
    backbone = read_backbone('hf:lab/vit')
    assert torch.equal(backbone.state_dict['ln1.weight'], model.layernorm.weight)
    assert not any('notes.md' in line for line in hub)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('hf:lab', 'must be hf:ORG/NAME'),
        ('hf:lab/PatchMix', 'no config.json with weights: name a file of it, hf:lab/PatchMix:FILE'),
        ('hf:lab/none', 'hf:lab/none: RepositoryNotFoundError: 404'),
        ('hf:lab/PatchMix:none.pth', 'EntryNotFoundError'),
        (f'hf:lab/PatchMix@v9:{FILE}', 'RevisionNotFoundError'),
    ],
)
def test_errors_are_one_line(name, message, hub):
    with pytest.raises((OSError, ValueError), match=message) as error:
        read_checkpoint(name)
    assert '\n' not in str(error.value)


def test_pickled_files_are_not_executed(hub, tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath('executed').write_text, ('x',))

    (tmp_path / 'hub/lab/PatchMix/evil.pth').write_bytes(pickle.dumps(dict(a=Attack())))
    with pytest.raises(ValueError, match='evil'):
        read_checkpoint('hf:lab/PatchMix:evil.pth')
    assert not (tmp_path / 'executed').exists()


def test_a_converted_folder_is_pushed_and_read_again(hub, tmp_path, capsys):
    convert.main([NAME, str(tmp_path / 'vit-s'), '--to', 'hf', '--push', 'me/vit-s'])
    assert '/me/vit-s' in capsys.readouterr().out.splitlines()[-1]
    assert 'create me/vit-s private=True' in hub
    pushed = sorted(path.name for path in (tmp_path / 'hub/me/vit-s').iterdir())
    assert pushed == ['README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json']
    again, first = read_backbone('hf:me/vit-s').state_dict, read_backbone(NAME).state_dict
    assert all(torch.equal(again[key], first[key]) for key in first)
    with pytest.raises(SystemExit, match='--push uploads the folder of --to hf'):
        convert.main([NAME, str(tmp_path / 'x.pth'), '--to', 'mmdet', '--push', 'me/x'])
