"""Checkpoints are read whole and run nothing, wherever mmengine or a command of ours loads."""

import pickle
import uuid

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from mmpatchmix.checkpoints import reading
from mmpatchmix.cli import convert, evaluate, train
from mmpatchmix.cli import test as test_verb
from mmpatchmix.compat.safe_loading import load_torch
from tests.engine.tiny_run import tiny_run_config


class Trap:
    """Leave a file behind when it is unpickled."""

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
    """The same run as a file, of a name of its own: mmengine keeps loggers by it."""
    cfg = Config(trained[0].to_dict())
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'work'), uuid.uuid4().hex
    cfg.dump(tmp_path / f'tiny_{uuid.uuid4().hex}.py')
    return cfg, next(tmp_path.glob('tiny_*.py'))


@pytest.fixture(params=['state_dict', 'optimizer', 'message_hub', 'text'])
def trapped(request, trained, tmp_path):
    """A checkpoint with a program in it, in one of several places; and the sign of its run."""
    sign = tmp_path / 'sprung'
    content = torch.load(trained[1], weights_only=False)
    if request.param == 'text':  # Runner.resume() takes meta.config for a config, and runs it
        content['meta']['config'] = f'open({str(sign)!r}, "w")\n'
    else:
        content[request.param]['trap'] = Trap(sign)
    torch.save(content, tmp_path / 'trapped.pth')
    return str(tmp_path / 'trapped.pth'), sign


def commands(path, config, folder):
    """Yield all commands that read a checkpoint."""
    common = [str(config), '--work-dir', str(folder / 'run')]
    yield train, [*common, '--resume', path, '--overwrite']
    init = f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint='{path}')"
    yield train, [*common, '--cfg-options', init]
    yield test_verb, [common[0], path, *common[1:]]
    yield evaluate, [common[0], path, *common[1:], '--what', 'knn']
    yield convert, [path, str(folder / 'vit.pth'), '--to', 'mmpretrain']


@pytest.mark.parametrize('trapped', ['optimizer'], indirect=True)
def test_no_command_runs_what_is_in_a_checkpoint(trapped, config, tmp_path):
    path, sign = trapped
    for verb, arguments in commands(path, config[1], tmp_path):
        with pytest.raises(SystemExit) as caught:
            verb.main(arguments)
        assert 'trapped.pth is not a file of weights only' in str(caught.value.code)
        assert '--trust-checkpoint' in str(caught.value.code)
        assert not sign.exists(), arguments


@pytest.mark.parametrize('resume', [True, False])
def test_a_plain_runner_runs_nothing_either(trapped, config, resume):
    (path, sign), (cfg, _) = trapped, config
    cfg.load_from, cfg.resume = path, resume
    try:
        Runner.from_cfg(cfg).train()
    except ValueError as error:
        assert 'not a file of weights only' in str(error)
    assert not sign.exists()


def test_no_way_of_mmengine_runs_it(tmp_path):
    path, sign = tmp_path / 'trapped.pth', tmp_path / 'sprung'
    torch.save(dict(state_dict=dict(trap=Trap(sign))), path)
    url = dict(model_dir=str(tmp_path), map_location='cpu')  # as if downloaded before
    ways = [
        lambda: load_checkpoint(nn.Linear(1, 1), str(path)),
        lambda: CheckpointLoader.load_checkpoint(str(path)),
        lambda: CheckpointLoader._get_checkpoint_loader('https://a')(
            'https://no.such/trapped.pth', **url
        ),
        lambda: MODELS.build(
            dict(
                type='ResNet',
                depth=18,
                init_cfg=dict(type='Pretrained', checkpoint=str(path)),
                _scope_='mmpretrain',
            )
        ).init_weights(),
    ]
    for way in ways:
        with pytest.raises(ValueError, match='not a file of weights only'):
            way()
        assert not sign.exists()


def same(a, b):
    """Compare what two readers return, to the last bit and type."""
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, HistoryBuffer):
        return type(b) is HistoryBuffer and same(vars(a), vars(b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return pickle.dumps(a) == pickle.dumps(b)


def test_our_own_checkpoint_is_read_whole(trained):
    safely, unpickled = load_torch(trained[1]), torch.load(trained[1], weights_only=False)
    assert {'message_hub', 'optimizer', 'param_schedulers', 'state_dict', 'meta'} <= safely.keys()
    assert len(safely['message_hub']['log_scalars']['train/loss']['values']) == 2
    assert same(safely, unpickled)


def test_a_history_as_mmengine_saves_it_is_read_whole(tmp_path):
    history = HistoryBuffer([1.0, 2.5], [1, 3])
    torch.save(dict(message_hub=dict(log_scalars={'train/loss': history})), tmp_path / 'a.pth')
    safely, unpickled = (
        content['message_hub']['log_scalars']['train/loss']
        for content in (
            load_torch(tmp_path / 'a.pth'),
            torch.load(tmp_path / 'a.pth', weights_only=False),
        )
    )
    assert same(safely, unpickled) and safely.data[0].tolist() == [1.0, 2.5]
    assert safely.data[1].tolist() == [1, 3]


def test_arrays_and_numbers_are_what_they_were(tmp_path):
    state = np.random.default_rng(0).bit_generator.state
    content = dict(
        arrays=[np.arange(6, dtype=kind).reshape(2, 3) for kind in ('u1', 'i8', 'f2', '>f4', 'c8')],
        turned=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        texts=np.array(['a', 'bc']),
        flags=np.array([True, False]),
        empty=np.zeros((0, 3)),
        scalars=(np.float64(0.5), np.int32(-3), np.bool_(True)),
        random=(np.random.get_state(), state),
    )
    torch.save(content, tmp_path / 'x.pth')
    read = load_torch(tmp_path / 'x.pth')
    assert same(read, content)
    read['arrays'][0][0, 0] = 7  # an array of its own


@pytest.mark.parametrize(
    'value',
    [
        np.array([{}, None], dtype=object),
        np.zeros(2, dtype=[('pointer', object), ('number', 'i8')]),
        np.zeros(2, dtype='V8'),
    ],
)
def test_arrays_of_other_things_than_numbers_become_nothing(tmp_path, value):
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(value=value)), tmp_path / 'x.pth')
    try:
        assert load_torch(tmp_path / 'x.pth')['meta']['value'] is None
    except ValueError as error:
        assert 'x.pth is damaged' in str(error)  # fields are not known at all


def test_trust_is_one_flag(trained, config, tmp_path, monkeypatch):
    sign = tmp_path / 'sprung'
    content = torch.load(trained[1], weights_only=False)
    content['meta']['trap'] = Trap(sign)
    torch.save(content, tmp_path / 'trapped.pth')
    monkeypatch.setattr(reading, '_trusted', False)
    arguments = [str(config[1]), str(tmp_path / 'trapped.pth'), '--work-dir', str(tmp_path / 'run')]
    with pytest.raises(SystemExit):
        test_verb.main(arguments)
    assert not sign.exists()
    test_verb.main([*arguments, '--trust-checkpoint'])
    assert sign.exists()


def test_a_missing_file_stays_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / 'none.pth')
