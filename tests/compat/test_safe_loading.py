"""Torch files are read completely and run no code, through mmengine's loaders and our verbs."""

import pickle
import uuid

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from mmpatchmix.cli import convert, train
from mmpatchmix.cli import test as test_verb
from mmpatchmix.compat import safe_loading
from mmpatchmix.compat.safe_loading import load_torch
from tests.engine.tiny_run import tiny_run_config


class Trap:
    """Create a file when it is unpickled."""

    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return open, (str(self.sign), 'w')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of one epoch: its config and its checkpoint."""
    work_dir = tmp_path_factory.mktemp('trained')
    cfg = tiny_run_config(work_dir, epochs=1, num_images=16)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    Runner.from_cfg(cfg).train()
    return cfg, work_dir / 'epoch_1.pth'


@pytest.fixture
def config(trained, tmp_path):
    """The same run with names of its own, since mmengine keeps loggers by name."""
    cfg = Config(trained[0].to_dict())
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'work'), uuid.uuid4().hex
    return cfg


@pytest.fixture
def trapped(trained, tmp_path):
    """The checkpoint with a trap in its optimizer state, and the file that the trap creates."""
    content = torch.load(trained[1], weights_only=False)
    content['optimizer']['trap'] = Trap(tmp_path / 'sprung')
    torch.save(content, tmp_path / 'trapped.pth')
    return tmp_path / 'trapped.pth', tmp_path / 'sprung'


def test_no_verb_runs_code_in_a_checkpoint_unless_trusted(trapped, config, tmp_path, monkeypatch):
    path, sign = trapped
    monkeypatch.setattr(safe_loading, '_is_trusted', False)
    file = tmp_path / f'tiny_{uuid.uuid4().hex}.py'
    config.dump(file)
    common = ['--work-dir', str(tmp_path / 'run')]
    for verb, arguments in (
        (train, [str(file), *common, '--resume', str(path), '--overwrite']),
        (convert, [str(path), str(tmp_path / 'vit.pth'), '--to', 'mmpretrain']),
    ):
        with pytest.raises(SystemExit) as caught:
            verb.main(arguments)
        assert 'trapped.pth is not a file of weights only' in str(caught.value.code)
        assert '--trust-checkpoint' in str(caught.value.code)
        assert not sign.exists(), arguments
    test_verb.main([str(file), str(path), *common, '--trust-checkpoint'])
    assert sign.exists()


def test_a_resumed_runner_does_not_run_the_config_text_of_a_file(trained, config, tmp_path):
    sign = tmp_path / 'sprung'
    content = torch.load(trained[1], weights_only=False)
    content['meta']['config'] = f'open({str(sign)!r}, "w")\n'  # as Runner.resume() would run it
    torch.save(content, tmp_path / 'x.pth')
    Runner.from_cfg(config).resume(str(tmp_path / 'x.pth'))
    assert not sign.exists()


@pytest.mark.parametrize(
    'load',
    [
        lambda path: load_checkpoint(nn.Linear(1, 1), str(path)),
        lambda path: CheckpointLoader._get_checkpoint_loader('https://a')(
            f'https://no.such/{path.name}', model_dir=str(path.parent), map_location='cpu'
        ),
    ],
    ids=['a file', 'a downloaded file'],
)
def test_no_loader_of_mmengine_runs_code_in_a_checkpoint(tmp_path, load):
    path, sign = tmp_path / 'trapped.pth', tmp_path / 'sprung'
    torch.save(dict(state_dict=dict(trap=Trap(sign))), path)
    with pytest.raises(ValueError, match=r'not a file of weights only: .*\(_?io\.open\)'):
        load(path)
    assert not sign.exists()


def test_a_pickled_model_is_refused_with_a_remedy(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / 'model.pth')
    with pytest.raises(ValueError, match=r'torch.nn.modules.linear.Linear(.|\n)*state_dict\(\)'):
        load_torch(tmp_path / 'model.pth')
    with pytest.raises(FileNotFoundError):  # and not called damaged
        load_torch(tmp_path / 'none.pth')


def same(a, b):
    """Compare the values that two readers return, types and bits included."""
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, HistoryBuffer):
        return type(b) is HistoryBuffer and same(vars(a), vars(b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return pickle.dumps(a) == pickle.dumps(b)


def test_a_checkpoint_of_a_run_is_read_completely(trained):
    safely, unpickled = load_torch(trained[1]), torch.load(trained[1], weights_only=False)
    assert {'message_hub', 'optimizer', 'param_schedulers', 'state_dict', 'meta'} <= safely.keys()
    assert len(safely['message_hub']['log_scalars']['train/loss']['values']) == 2
    assert same(safely, unpickled)


def test_arrays_numbers_and_histories_are_restored(tmp_path):
    state = np.random.default_rng(0).bit_generator.state
    content = dict(
        arrays=[np.arange(6, dtype=kind).reshape(2, 3) for kind in ('u1', 'i8', 'f2', '>f4', 'c8')],
        transposed=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        texts=np.array(['a', 'bc']),
        flags=np.array([True, False]),
        empty=np.zeros((0, 3)),
        scalars=(np.float64(0.5), np.int32(-3), np.bool_(True)),
        random=(np.random.get_state(), state),
    )
    history = dict(history=HistoryBuffer([1.0, 2.5], [1, 3]))
    torch.save(content | history, tmp_path / 'x.pth')
    read = load_torch(tmp_path / 'x.pth')
    unpickled = torch.load(tmp_path / 'x.pth', weights_only=False)
    assert same(read.pop('history'), unpickled['history'])
    assert same(read, content)
    read['arrays'][0][0, 0] = 7  # its memory is writable


@pytest.mark.parametrize('kind', [object, [('pointer', object), ('number', 'i8')], 'V8'], ids=str)
def test_arrays_of_other_types_become_none_or_are_refused(tmp_path, kind):
    torch.save(dict(a=torch.ones(1), value=np.zeros(2, dtype=kind)), tmp_path / 'x.pth')
    try:
        assert load_torch(tmp_path / 'x.pth')['value'] is None
    except ValueError as error:
        assert 'x.pth is damaged' in str(error)  # structured dtypes are unknown
