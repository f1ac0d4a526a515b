"""Arguments become config values."""

import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpatchmix.cli import train
from mmpatchmix.cli import verb as build_module
from mmpatchmix.cli.arguments import (
    find_launcher,
    holds_shards,
    new_parser,
    point_out_secrets,
    set_data_root,
    set_precision,
    set_val_root,
    set_workers,
)
from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.cli.verb import build_runner
from tests.engine.tiny_run import tiny_run_config


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


@pytest.mark.parametrize('name', ['in1k', 'folder', 'any', 'continue'])
def test_val_root_reaches_what_is_judged_and_nothing_else(name):
    cfg = Config.fromfile(f'configs/patchmix_vit-s_{name}.py')
    set_data_root(cfg, '/my/train.csv')
    set_val_root(cfg, '/my/val.csv')
    for loader in loaders(cfg):
        judged = loader in (cfg.val_dataloader, cfg.test_dataloader)
        assert loader.dataset.data_root == ('/my/val.csv' if judged else '/my/train.csv')
        assert loader.dataset.split is None
        assert not judged or loader.dataset.data_prefix == ''
    check_config(cfg)
    with pytest.raises(ValueError, match='--val-root needs a config that trains on images of'):
        set_val_root(Config.fromfile('configs/patchmix_vit-digits.py'), '/my/val.csv')


@pytest.mark.parametrize('names', ['a.tar', 'a.tar pack.json shards-1.index.npz .lock b.tar'])
def test_tar_files_in_the_place_of_a_folder_are_shards(tmp_path, names):
    for name in names.split():
        for folder in ('', 'train', 'val'):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).touch()
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    set_data_root(cfg, str(tmp_path))
    assert {loader.dataset.type for loader in loaders(cfg)} == {'mmpatchmix.ShardedImages'}
    check_config(cfg)
    set_data_root(cfg, '/my/images')
    assert {loader.dataset.type for loader in loaders(cfg)} == {'mmpatchmix.ImageFolder'}


def test_a_pattern_or_an_address_of_tar_files_are_shards():
    for location in ('shards/train-{000000..000009}.tar', 'http://host/{0..3}.tar', '~/a*.tar'):
        cfg = Config.fromfile('configs/patchmix_vit-s_folder.py')
        set_data_root(cfg, location)
        assert {loader.dataset.type for loader in loaders(cfg)} == {'mmpatchmix.ShardedImages'}
        assert {loader.dataset.data_root for loader in loaders(cfg)} == {location}


@pytest.mark.parametrize('names', ['', 'a.tar b.jpg', 'a.tar n01440764/c.JPEG'])
def test_images_beside_tar_files_are_no_shards(tmp_path, names):
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert not holds_shards(str(tmp_path))


def test_annotations_of_evaluators_move_along():
    cfg = Config.fromfile('configs/coco/mask-rcnn_vit-s_fpn_1x.py')
    set_data_root(cfg, '/my/coco')
    expected = '/my/coco/annotations/instances_val2017.json'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == expected
    # Data sets join theirs to the root by themselves.
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'


def test_absolute_paths_of_annotations_stay_where_there_was_no_root():
    dataset = dict(type='A', data_root='', ann_file='/lists/train.txt')
    cfg = Config(dict(loader=dict(dataset=dataset)))
    set_data_root(cfg, '/my/images')
    assert cfg.loader.dataset.to_dict() == dataset | dict(data_root='/my/images')


def test_a_data_root_that_nothing_reads_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no data set of this config has a data_root'):
        set_data_root(Config.fromfile('configs/patchmix_vit-digits.py'), '/my/images')
    (tmp_path / 'list.csv').touch()
    cfg = Config(dict(dataset=dict(type='CustomDataset', data_root='', ann_file='a.txt')))
    with pytest.raises(ValueError, match=r'this config has a CustomDataset, which wants a folder'):
        set_data_root(cfg, str(tmp_path / 'list.csv'))
    with pytest.raises(ValueError, match='no data set of this config has a data_root'):
        set_data_root(Config(dict(data_root='data/coco')), '/my/images')
    folder = dict(type='mmpatchmix.ImageFolder', data_root='')
    cfg = Config(dict(data_root='data/mine', dataset=folder))  # a variable beside it
    set_data_root(cfg, str(tmp_path / 'list.csv'))
    assert cfg.dataset.data_root == str(tmp_path / 'list.csv')


def test_no_workers_leave_nothing_that_torch_refuses_without_any():
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    cfg.train_dataloader.prefetch_factor = 4
    set_workers(cfg, 0)
    for loader in loaders(cfg):
        options = {k: loader.get(k) for k in ('num_workers', 'persistent_workers')}
        torch.utils.data.DataLoader([1], **options, prefetch_factor=loader.get('prefetch_factor'))
        assert options['num_workers'] == 0


def test_workers_reach_every_loader():
    cfg = Config.fromfile('configs/patchmix_vit-digits.py')
    set_workers(cfg, 3)
    assert all(loader.num_workers == 3 and loader.persistent_workers for loader in loaders(cfg))
    with pytest.raises(ValueError, match='--workers -1'):
        set_workers(cfg, -1)


BF16 = 'mmpatchmix.BF16OptimWrapper'


@pytest.mark.parametrize(
    ('flag', 'wrapper', 'expected'),
    [
        ([], dict(type=BF16, enabled='auto'), dict(type=BF16, enabled='auto')),
        (['--amp'], dict(type=BF16, enabled='auto'), dict(type=BF16, enabled=True)),
        (['--no-amp'], dict(type=BF16, enabled='auto'), dict(type=BF16, enabled=False)),
        (['--amp'], dict(type='OptimWrapper'), dict(type=BF16, enabled=True)),
        (['--no-amp'], dict(type='OptimWrapper'), dict(type='OptimWrapper')),
        (['--no-amp'], dict(type='AmpOptimWrapper', dtype='float16'), dict(type='OptimWrapper')),
        (
            ['--amp'],
            dict(type='AmpOptimWrapper', loss_scale='dynamic'),
            dict(type=BF16, enabled=True),
        ),
    ],
)
def test_precision_leaves_a_wrapper_that_builds(tmp_path, flag, wrapper, expected):
    cfg = tiny_run_config(tmp_path)
    shared = dict(optimizer=dict(type='AdamW', lr=1e-3), accumulative_counts=2)
    cfg.optim_wrapper = {**shared, **wrapper}
    train.apply_arguments(cfg, train.parse_args(['config.py', *flag]))
    assert cfg.optim_wrapper.to_dict() == {**shared, **expected}
    built = Runner.from_cfg(cfg).build_optim_wrapper(cfg.optim_wrapper)
    assert built._accumulative_counts == 2


@pytest.mark.parametrize('wrapper', [None, dict(type='ApexOptimWrapper')])
def test_precision_that_cannot_be_changed_is_said(wrapper):
    with pytest.raises(ValueError, match=r'--amp and --no-amp: .*(missing|ApexOptimWrapper)'):
        set_precision(Config(dict(optim_wrapper=wrapper)), False)


@pytest.mark.parametrize(
    ('called', 'prog'),
    [
        ('/venv/bin/mmpatchmix', 'mmpatchmix train'),
        ('/site-packages/mmpatchmix/__main__.py', 'mmpatchmix train'),
        ('tools/train.py', 'tools/train.py'),
        ('/a/b/.mim/tools/train.py', 'tools/train.py'),
    ],
)
def test_help_names_the_program_as_it_was_called(monkeypatch, called, prog):
    monkeypatch.setattr(sys, 'argv', [called])
    assert new_parser('train', '').prog == prog


@pytest.mark.parametrize('accelerator', [True, False])
def test_only_processes_that_train_on_the_host_keep_its_memory(monkeypatch, accelerator):
    calls = []
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: accelerator)
    monkeypatch.setattr(build_module, 'keep_freed_memory', lambda: calls.append('kept'))
    monkeypatch.setattr(
        build_module.RUNNERS,
        'get',
        lambda name: SimpleNamespace(from_cfg=lambda cfg: calls.append('built')),
    )
    build_runner(Config(dict(launcher='none')), verbose=True)
    assert calls == (['built'] if accelerator else ['kept', 'built'])


@pytest.mark.parametrize('verbose', [True, False])
def test_the_runner_is_of_the_class_that_the_config_names(tmp_path, capfd, verbose):
    @RUNNERS.register_module(force=True)
    class RunnerOfATest(Runner):
        pass

    cfg = tiny_run_config(tmp_path)
    cfg.runner_type = 'RunnerOfATest'
    assert isinstance(build_runner(cfg, verbose), RunnerOfATest)
    captured = ''.join(capfd.readouterr())
    assert ('System environment' in captured) == verbose
    (log,) = tmp_path.glob('*/*.log')
    assert 'System environment' in log.read_text()


def test_an_unknown_runner_is_said(tmp_path):
    cfg = tiny_run_config(tmp_path)
    cfg.runner_type = 'NoRunner'
    with pytest.raises(ValueError, match="runner_type='NoRunner'"):
        build_runner(cfg)


def test_secrets_of_the_environment_are_pointed_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRACKER_API_KEY', 'abc')
    monkeypatch.setenv('PATCHMIX_SIDE', '32')
    lines = "side = int('{{$PATCHMIX_SIDE:16}}')\nkey = '{{$TRACKER_API_KEY:none}}'\n"
    (tmp_path / 'config.py').write_text(lines)
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert (cfg.side, cfg.key) == (32, 'abc')
    capsys.readouterr()
    point_out_secrets(cfg)
    told = capsys.readouterr().err
    assert 'TRACKER_API_KEY' in told and 'SIDE' not in told and 'abc' not in told


@pytest.mark.parametrize(
    ('launcher', 'env', 'expected'),
    [
        ('none', dict(), 'none'),
        ('none', dict(WORLD_SIZE='1'), 'none'),
        ('slurm', dict(WORLD_SIZE='2'), 'slurm'),
        (
            'none',
            dict(WORLD_SIZE='2', RANK='1', LOCAL_RANK='1', MASTER_ADDR='a', MASTER_PORT='1'),
            'pytorch',
        ),
    ],
)
def test_a_forgotten_launcher_is_adopted(monkeypatch, launcher, env, expected):
    for name in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert find_launcher(launcher) == expected


def test_several_processes_that_cannot_meet_are_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(ValueError, match=r'WORLD_SIZE=2, but .* --launcher'):
        find_launcher('none')
