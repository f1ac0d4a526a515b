"""Configs are fitted to arguments and machine."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmpatchmix.cli import launch
from mmpatchmix.cli.launch import clear_earlier_run, earlier_run, fit_loaders, set_data_root


def loaders(cfg):
    return [
        cfg.train_dataloader,
        cfg.val_dataloader,
        cfg.val_cfg.bank_dataloader,
        cfg.test_dataloader,
        cfg.test_cfg.bank_dataloader,
    ]


def test_data_root_reaches_every_data_set():
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    set_data_root(cfg, '/my/images')
    assert {loader.dataset.data_root for loader in loaders(cfg)} == {'/my/images'}


def test_annotations_of_evaluators_move_along():
    cfg = Config.fromfile('configs/coco/mask-rcnn_vit-s_fpn_1x.py')
    set_data_root(cfg, '/my/coco')
    expected = '/my/coco/annotations/instances_val2017.json'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == expected
    # Data sets join theirs to the root by themselves.
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'


def test_loaders_keep_within_the_machine(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(12)))
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    cfg.val_dataloader.num_workers = 2
    fit_loaders(cfg)
    assert [loader.num_workers for loader in loaders(cfg)] == [3, 2, 3, 3, 3]
    assert not any(loader.pin_memory for loader in loaders(cfg))
    digits = Config.fromfile('configs/patchmix_vit-digits.py')
    fit_loaders(digits)
    assert digits.train_dataloader.num_workers == 0  # none stays none


def test_with_room_and_an_accelerator_nothing_changes(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(64)))
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    before = cfg.to_dict()
    fit_loaders(cfg)
    assert cfg.to_dict() == before


@pytest.mark.parametrize('accelerator', [True, False])
def test_only_processes_that_train_on_the_host_keep_its_memory(monkeypatch, accelerator):
    calls = []
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: accelerator)
    monkeypatch.setattr(launch, 'keep_freed_memory', lambda: calls.append('kept'))
    runner = SimpleNamespace(from_cfg=lambda cfg: calls.append('built'))
    monkeypatch.setattr(launch, 'ConciseRunner', runner)
    cfg = Config.fromfile('configs/linear/vit-s_in1k.py')
    cfg.launcher = 'none'
    launch.build_runner(cfg)
    assert calls == (['built'] if accelerator else ['kept', 'built'])


def test_clearing_takes_the_run_and_nothing_else(tmp_path):
    for name in ('epoch_1.pth', 'last_checkpoint', '20260101/vis_data/scalars.json'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('x')
    (tmp_path / 'notes.txt').write_text('mine')
    (tmp_path / 'photos').mkdir()
    assert len(earlier_run(tmp_path)) == 3
    clear_earlier_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['notes.txt', 'photos']


@pytest.mark.parametrize(
    ('flag', 'wrapper', 'expected'),
    [
        ([], {'type': 'mmpatchmix.BF16OptimWrapper', 'enabled': 'auto'}, 'auto'),
        (['--amp'], {'type': 'mmpatchmix.BF16OptimWrapper', 'enabled': 'auto'}, True),
        (['--no-amp'], {'type': 'mmpatchmix.BF16OptimWrapper', 'enabled': 'auto'}, False),
        (['--amp'], {'type': 'OptimWrapper'}, True),
        (['--no-amp'], {'type': 'OptimWrapper'}, None),
    ],
)
def test_precision_on_the_command_line(monkeypatch, flag, wrapper, expected):
    from tools import train

    monkeypatch.setattr('sys.argv', ['train.py', 'config.py', *flag])
    cfg = Config(dict(optim_wrapper=wrapper))
    train.apply_arguments(cfg, train.parse_args())
    assert cfg.optim_wrapper.get('enabled') == expected
    assert (cfg.optim_wrapper.type == 'OptimWrapper') == (expected is None)
