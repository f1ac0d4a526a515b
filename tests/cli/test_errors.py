"""Errors that a user can mend end in one message with the key, others in a traceback."""

import json
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from mmpatchmix.cli import test as test_verb
from mmpatchmix.cli import train
from mmpatchmix.cli.config_checks import apply_options
from mmpatchmix.cli.verb import exit_on_user_error
from tests.engine.tiny_run import tiny_run_config


@pytest.fixture
def config(tmp_path):
    """A tiny run as a file, of a name of its own: mmengine keeps loggers by it."""
    cfg = tiny_run_config(tmp_path / 'work', epochs=1)
    path = tmp_path / f'tiny_{uuid.uuid4().hex}.py'
    cfg.dump(path)
    return str(path)


def end(verb, *arguments) -> str:
    """Return the message that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        verb.main([str(argument) for argument in arguments])
    return str(caught.value.code)


@pytest.mark.parametrize(
    ('option', 'parts'),
    [
        ('lr=1.0 max_epoch=3', ['there is optim_wrapper.optimizer.lr', 'max_epoch: not read']),
        ('max_epochs=3', ['there is train_cfg.max_epochs', '--epochs']),
        ('modell.type=X', ['did you mean model.type']),
        ('default_hooks.checkpoint.intervl=3', ['checkpoint.intervl: ', 'did you mean interval']),
        ('optim_wrapper.optimizer.lr=abc', ["optimizer.lr='abc' must be a number, such as 0.003"]),
        ('train_dataloader.drop_last=flase', ["drop_last='flase' must be True or False"]),
        ('model.backbone.arch=tiny', ['Arch tiny', 'model.backbone (']),
        ('model.head.tempratur=0.1', ['model.head.tempratur: ', 'did you mean temperature']),
        ('model.type=mmpatchmix.PatchMx', ['no mmpatchmix.PatchMx; did you mean']),
        ('default_hooks.new.interval=3', ['"type"', 'default_hooks.new of the config']),
        ('optim_wrapper.optimizer.type=AdamWW', ['optim_wrapper.optimizer.type', 'mean AdamW?']),
        ('model.backbone.in_channels=5', ['(3, 32, 32)', 'model.backbone.in_channels=5']),
        ('val_dataloader.prefetch_factor=2', ['prefetch_factor', 'in val_dataloader']),
        ('param_scheduler.7.eta_min=3', ['--cfg-options: ', '7']),
        ('model.backbone', ['--cfg-options model.backbone: write KEY=VALUE']),
        ('model.init_cfg=dict(path=/a/b)', ['model.init_cfg', 'in quotes for the shell']),
    ],
)
def test_unknown_options_are_named(config, tmp_path, option, parts):
    message = end(train, config, '--work-dir', tmp_path / 'run', '--cfg-options', *option.split())
    assert all(part in message for part in parts), message
    assert '--verbose' in message


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('[1,2]', [1, 2]),
        ('(0.9,0.95)', (0.9, 0.95)),
        ('[dict(num_mix=2),(a.b,None)]', [dict(num_mix=2), ('a.b', None)]),
        ('true', True),
        ("{'type': 'Constant', 'val': 0.5}", dict(type='Constant', val=0.5)),
        ('dict(type=Constant,val=.5)', dict(type='Constant', val=0.5)),
    ],
)
def test_values_of_options_are_parsed(text, value):
    for before in (dict(), dict(key=None), dict(key=1)):
        cfg = Config(dict(model=before))
        apply_options(cfg, [f'model.key={text}'])
        assert cfg.model.key == value and isinstance(cfg.model.key, type(value))


def test_the_corrected_command_starts_after_a_failed_one(config, tmp_path):
    work_dir = tmp_path / 'run'
    bad = ('--cfg-options', 'model.backbone.arch=tiny')
    assert 'Arch tiny' in end(train, config, '--work-dir', work_dir, *bad)
    assert list(work_dir.glob('*/vis_data'))  # it got that far
    train.main([config, '--work-dir', str(work_dir)])
    assert (work_dir / 'epoch_1.pth').is_file()
    message = end(train, config, '--work-dir', work_dir)
    assert 'holds an earlier run' in message and '--resume' in message


def test_a_damaged_or_missing_checkpoint_is_named(config, tmp_path):
    file = tmp_path / 'damaged.pth'
    for content in (b'this is not a checkpoint', b'', b'PK\x03\x04 cut'):
        file.write_bytes(content)
        message = end(test_verb, config, file, '--work-dir', tmp_path / 'test')
        assert f'{file} ' in message and 'damaged' in message
    message = end(train, config, '--resume', file, '--work-dir', tmp_path / 'train')
    assert f'{file} ' in message and 'damaged' in message
    message = end(train, config, '--resume', tmp_path / 'none.pth', '--work-dir', tmp_path)
    assert 'there is no checkpoint' in message and 'none.pth' in message


def test_ctrl_c_prints_how_to_resume(config, tmp_path, monkeypatch, capsys):
    step = Runner.train

    def train_and_interrupt(runner):
        step(runner)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, 'train', train_and_interrupt)
    assert end(train, config, '--work-dir', tmp_path) == '130'
    checkpoint = tmp_path / 'epoch_1.pth'
    assert f'interrupted: --resume continues from {checkpoint}' in capsys.readouterr().err


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError('8 of 40 images cannot be read:\n  a.png\nReplace them.')


def test_errors_of_data_workers_come_without_their_traceback():
    expected = r'^\nValueError: 8 of 40 images cannot be read:\n  a.png\nReplace them.\n+\(--verb'
    with pytest.raises(SystemExit, match=expected), exit_on_user_error():
        next(iter(DataLoader(Broken(), num_workers=1)))


@pytest.mark.parametrize('verbose', [True, False])
def test_faults_of_the_code_keep_their_traceback(verbose):
    with pytest.raises(RuntimeError, match='shapes'), exit_on_user_error(verbose):
        raise RuntimeError('shapes differ')
    if verbose:
        with pytest.raises(ValueError, match="user's"), exit_on_user_error(verbose):
            raise ValueError("a user's")


def test_metrics_of_any_type_are_printed_and_written(config, tmp_path, monkeypatch, capsys):
    """IoUMetric of mmseg returns NumPy's numbers, ConfusionMatrix of mmpretrain a matrix."""
    found = {'mIoU': np.float32(7.5), 'top1': torch.tensor(50.0), 'confusion': torch.eye(2)}
    runner = SimpleNamespace(test=lambda: found)
    monkeypatch.setattr(test_verb, 'build_runner', lambda *_: runner)
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    out = tmp_path / 'metrics.json'
    test_verb.main([config, str(tmp_path / 'a.pth'), '--out', str(out)])
    assert json.loads(out.read_text()) == {'mIoU': 7.5, 'top1': 50}
    assert 'mIoU    7.5000' in capsys.readouterr().out
