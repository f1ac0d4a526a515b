"""Files of other trainers: states under any key, averages, wrappers, foreign objects."""

import argparse
import collections
import datetime
import enum
import json
import pathlib
import pickle
import re
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from mmpatchmix.checkpoints import read_backbone, read_checkpoint
from mmpatchmix.compat.safe_loading import load_torch
from mmpatchmix.convert.features import build_vit
from tests.checkpoints.vits import SPEC, hugging_face, make_timm_vit, save

RAW, AVERAGE = make_timm_vit(seed=1), make_timm_vit(seed=2)


def with_prefix(state, prefix):
    return {f'{prefix}{key}': value for key, value in state.items()}


def positions(tmp_path, content, *args, **options):
    """Return the position embedding that is read; it differs between the two networks."""
    backbone = read_backbone(save(tmp_path, content), *args, num_heads=3, **options)
    first = backbone.state_dict['pos_embed'][0, 0, 0]
    name = {RAW.pos_embed[0, 0, 0].item(): 'raw', AVERAGE.pos_embed[0, 0, 0].item(): 'average'}
    return name[first.item()], str(backbone.report)


class Colour(enum.Enum):
    RED = 1


class Settings(dict):
    """A dictionary of a class of its own."""


class Getattr:
    """A call that mmengine's list of safe classes permits."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, 'mean')


class Outer:
    class Inner(enum.Enum):
        A = 1


FOREIGN = dict(
    path=pathlib.PosixPath('/x'), args=argparse.Namespace(lr=1, path=pathlib.Path('/y')),
    order=collections.OrderedDict(lr=np.float64(0.5)), colour=Colour.RED, kind=Colour,
    inner=Outer.Inner.A, day=datetime.date(2024, 1, 1), counts=collections.defaultdict(list, a=[1]),
    loss=torch.nn.CrossEntropyLoss(), act=torch.nn.functional.gelu, keyed={Colour.RED: 1, 'b': 2},
    settings=Settings(lr=1), members={1, 2}, of=np.random.default_rng(0), call=Getattr(),
)  # fmt: skip


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_objects_become_none_and_weights_are_read(tmp_path, name):
    content = dict(state_dict=dict(weight=torch.ones(2)), extra=[FOREIGN[name]])
    kept = dict(order=FOREIGN['order'], counts=dict(a=[1]), settings=dict(lr=1), members={1, 2})
    kept |= dict(keyed=dict(b=2))
    # Without an archive, torch stores the source of modules beside them.
    for zipped in (True, False)[: 1 if name == 'loss' else 2]:
        torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
        read = load_torch(tmp_path / 'x.pth')
        assert read['extra'] == [kept.get(name)]
        assert read['state_dict']['weight'].tolist() == [1, 1]


@pytest.mark.parametrize(
    'function', [exec, subprocess.Popen, subprocess.run, pickle.loads, breakpoint, __import__]
)
def test_files_that_name_functions_of_python_are_refused(tmp_path, function):
    class Trap:
        def __reduce__(self):
            return function, (f'open({str(tmp_path / "sprung")!r}, "w")',)

    content = dict(state_dict=dict(weight=torch.ones(2)), trap=Trap())
    with pytest.raises(ValueError, match='not a file of weights only'):
        read_checkpoint(save(tmp_path, content))
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize('keys', ['model_state_dict', 'module', 'a.b', 'state.model.net'])
def test_a_state_is_found_under_any_key(tmp_path, keys):
    content = RAW.state_dict()
    for key in reversed(keys.split('.')):
        content = {key: content, 'epoch': 3, 'rng_state': torch.zeros(9, dtype=torch.uint8)}
    moments = {key: torch.ones_like(value) for key, value in RAW.state_dict().items()}
    content |= dict(
        optimizer=dict(exp_avg=moments), queue=torch.ones(10**5), head=dict(a=torch.ones(2))
    )
    assert positions(tmp_path, content)[0] == 'raw'


@pytest.mark.parametrize(
    ('raw', 'average'),
    [
        ('state_dict', 'state_dict_ema'), ('net', 'ema.module'), ('net', 'netEMA'),
        ('weights', 'averaged_model'), ('model', 'swa_model'), ('net', 'shadow'),
        ('state_dict', 'callbacks.EMA.ema_weights'), ('student', 'teacher'),
        ('encoder', 'target_encoder'), ('encoder_q', 'encoder_k'), ('remaining', 'EMA'),
    ],
)  # fmt: skip
@pytest.mark.parametrize('joined', [True, False])
def test_averages_are_preferred_to_raw_weights(tmp_path, raw, average, joined):
    content = {}
    for name, vit in ((raw, RAW), (average, AVERAGE)):
        state = with_prefix(vit.state_dict(), 'module.')
        if joined:
            content |= with_prefix(state, f'{name}.')
            continue
        for key in reversed(name.split('.')):
            state = {key: state}
        content |= state
    name, report = positions(tmp_path, content | dict(epoch=3, args=argparse.Namespace()))
    assert name == 'average' and f'dropped on purpose: {raw}' in report
    if raw not in ('student', 'encoder', 'encoder_q'):
        note = f'{average.removesuffix(".module")}.*, which are averages of weights (EMA)'
        assert f"{note}; for the raw ones: prefix='{raw}.'" in report
        assert '--encoder query' in report
    assert positions(tmp_path, content, 'query')[0] == 'raw'
    assert positions(tmp_path, content, prefix=f'{raw}.')[0] == 'raw'


def test_a_counter_of_torch_marks_averages(tmp_path):
    average = AveragedModel(AVERAGE).state_dict()
    content = dict(one=RAW.state_dict(), two=average)
    assert positions(tmp_path, content)[0] == 'average'
    assert positions(tmp_path, content, 'query')[0] == 'raw'
    assert positions(tmp_path, average)[0] == 'average'


@pytest.mark.parametrize('trainer', ['mmengine', 'lightning'])
def test_a_state_dict_of_averages_is_preferred_to_the_raw_one_beside_it(tmp_path, trainer):
    raw, average = (with_prefix(vit.state_dict(), 'backbone.') for vit in (RAW, AVERAGE))
    if trainer == 'mmengine':
        swapped = dict(ema_state_dict=dict(steps=torch.tensor(3)) | with_prefix(raw, 'module.'))
        content = dict(state_dict=average, message_hub={}, meta={}) | swapped
    else:
        content = dict(state_dict=average, current_model_state=raw)
    name, report = positions(tmp_path, content)
    assert name == 'average' and "for the raw ones: prefix='raw.backbone.'" in report
    assert positions(tmp_path, content, 'query')[0] == 'raw'
    assert read_checkpoint(tmp_path / 'x.pth').state_dict.keys() == average.keys()


@pytest.mark.parametrize(
    ('find', 'wrapped'),
    [
        ('^', 'module._orig_mod.'), ('^', 'model.module.'),
        (r'^|(?<=\.0\.)', '_fsdp_wrapped_module.'),
        (r'(?<=blocks\.1\.)', '_checkpoint_wrapped_module.'),
    ],
)  # fmt: skip
def test_wrappers_in_key_names_are_removed(tmp_path, find, wrapped):
    state = {re.sub(find, wrapped, key): value for key, value in RAW.state_dict().items()}
    assert positions(tmp_path, dict(model=state))[0] == 'raw'


OTHERS = {
    'pointer of Git LFS(.|\n)*git lfs pull': b'version https://git-lfs.github.com/spec/v1\n',
    'web page': b'\n<!DOCTYPE html><html></html>',
    'JSON file': b'{"a": 1}',
    'an archive. Unpack': b'\x1f\x8b\x08' + bytes(30),
    'an archive': bytes(257) + b'ustar' + bytes(300),
    r'pickle that torch\.save\(\) did not write': pickle.dumps(dict(a=1)),
    'it is empty': b'',
    "damaged .it begins with b'Entry not found'": b'Entry not found',
}


@pytest.mark.parametrize('kind', OTHERS)
def test_other_files_are_named(tmp_path, kind):
    for ending in ('.pth', '.safetensors'):
        (tmp_path / f'x{ending}').write_bytes(OTHERS[kind])
        with pytest.raises(ValueError, match=kind) as error:
            read_checkpoint(tmp_path / f'x{ending}')
        assert 'end is missing' not in str(error.value)


def test_programs_archives_and_pickled_models_are_named(tmp_path):
    content = dict(model=torch.nn.Linear(2, 2), optimizer=dict(state={0: dict(a=torch.ones(2))}))
    with pytest.raises(ValueError, match=r"holds no tensors.*\['model'\].*Python objects"):
        read_checkpoint(save(tmp_path, content))
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / 'x.pt')
    with pytest.raises(ValueError, match=r'TorchScript archive(.|\n)*torch\.jit\.load'):
        read_checkpoint(tmp_path / 'x.pt')
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
        archive.writestr('weights.pth', 'x')
    with pytest.raises(ValueError, match=r'zip archive of other files\. Unpack'):
        read_checkpoint(tmp_path / 'x.zip')


def test_formats_are_recognised_in_spite_of_the_ending(tmp_path):
    save_file(dict(weight=torch.ones(2)), tmp_path / 'x.pth')
    torch.save(dict(weight=torch.ones(2)), tmp_path / 'x.safetensors')
    for name in ('x.pth', 'x.safetensors'):
        assert read_checkpoint(tmp_path / name).state_dict['weight'].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r'safetensors file\. Rename it'):
        load_torch(tmp_path / 'x.pth')


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
@pytest.mark.parametrize('sharded', [True, False])
def test_folders_of_transformers_are_read_with_every_format_of_weights(tmp_path, kind, sharded):
    folder, model = hugging_face(tmp_path, 'ViTModel', 'ViTConfig')
    items = list(load_file(folder / 'model.safetensors').items())
    (folder / 'model.safetensors').unlink()
    stem = 'model' if kind == 'safetensors' else 'pytorch_model'
    parts = {f'{stem}.{kind}': dict(items)}
    if sharded:
        parts = {f'{stem}-{n}-of-2.{kind}': dict(items[n::2]) for n in (0, 1)}
        index = dict(weight_map={key: name for name, part in parts.items() for key in part})
        (folder / f'{stem}.{kind}.index.json').write_text(json.dumps(index))
    for name, part in parts.items():
        save = save_file if kind == 'safetensors' else torch.save
        save(part, folder / name)
    backbone = read_backbone(folder)
    assert torch.equal(backbone.state_dict['ln1.weight'], model.layernorm.weight)
    assert backbone.spec.num_heads == 3 and len(backbone.report.used) == 38
    (folder / name).unlink()
    message = r'without model\.safetensors or .*index\.json;'
    message = f'no checkpoint .*{name}' if sharded else message
    with pytest.raises(FileNotFoundError, match=message):
        read_backbone(folder)


def test_folders_of_timm_have_no_config_of_transformers(tmp_path):
    (tmp_path / 'config.json').write_text('{"architecture": "vit_tiny"}')
    save_file(RAW.state_dict(), tmp_path / 'model.safetensors')
    backbone = read_backbone(tmp_path, num_heads=3)
    assert backbone.spec == SPEC and build_vit(SPEC).load_state_dict(backbone.state_dict)
    stated = dict(mean=[0.5] * 3, std=[0.5] * 3, input_size=[3, 224, 224], crop_pct=0.9)
    config = dict(pretrained_cfg=stated, model_args=dict(num_heads=SPEC.num_heads))
    (tmp_path / 'config.json').write_text(json.dumps(config))
    backbone = read_backbone(tmp_path, default_heads=1)
    assert backbone.spec == SPEC
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (127.5,) * 3
    assert backbone.preprocessing.resize == 248  # floor(224 / 0.9), as in timm
