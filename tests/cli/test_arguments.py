"""Arguments become config values."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpatchmix.cli import train
from mmpatchmix.cli.arguments import (
    FOLDER,
    SHARDS,
    find_launcher,
    holds_shards,
    load_config,
    set_data_root,
    set_precision,
    set_val_root,
    set_workers,
    warn_about_secrets,
)
from mmpatchmix.cli.config_checks import check_config
from mmpatchmix.cli.verb import build_runner
from tests.engine.tiny_run import tiny_run_config


def loaders(cfg):
    banks = [cfg.val_cfg.bank_dataloader, cfg.test_cfg.bank_dataloader]
    return [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader, *banks]


@pytest.mark.parametrize('name', ['in1k', 'continue'])
def test_val_root_changes_the_evaluated_images_only(name):
    cfg = Config.fromfile(f'configs/patchmix_vit-s_{name}.py')
    set_data_root(cfg, '/my/train.csv')
    set_val_root(cfg, '/my/val.csv')
    for loader in loaders(cfg):
        evaluated = loader in (cfg.val_dataloader, cfg.test_dataloader)
        assert loader.dataset.data_root == ('/my/val.csv' if evaluated else '/my/train.csv')
        assert loader.dataset.split is None
        assert not evaluated or loader.dataset.data_prefix == ''
    check_config(cfg)
    with pytest.raises(ValueError, match='--val-root needs a config with a val_dataloader'):
        set_val_root(Config.fromfile('configs/patchmix_vit-digits.py'), '/my/val.csv')


def test_folders_of_tar_files_are_recognised(tmp_path):
    assert not holds_shards(str(tmp_path))
    for name in ('a.tar', 'pack.json', 'shards-1.index.npz', '.lock'):
        (tmp_path / name).touch()
    assert holds_shards(str(tmp_path))
    (tmp_path / 'n01440764').touch()
    assert not holds_shards(str(tmp_path))


def test_data_root_and_its_kind_reach_every_data_set():
    cfg = Config.fromfile('configs/patchmix_vit-s_folder.py')
    for location, kind in (('http://host/{0..3}.tar', SHARDS), ('/my/images', FOLDER)):
        set_data_root(cfg, location)
        assert {loader.dataset.type for loader in loaders(cfg)} == {kind}
        assert {loader.dataset.data_root for loader in loaders(cfg)} == {location}
        check_config(cfg)
    cfg = Config.fromfile('configs/coco/mask-rcnn_vit-s_fpn_1x.py')
    set_data_root(cfg, '/my/coco')
    expected = '/my/coco/annotations/instances_val2017.json'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == expected
    # Data sets join theirs to the root by themselves.
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'


def test_a_data_root_without_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no data set of this config has a data_root'):
        set_data_root(Config.fromfile('configs/patchmix_vit-digits.py'), '/my/images')
    (tmp_path / 'list.csv').touch()
    cfg = Config(dict(dataset=dict(type='CustomDataset', data_root='', ann_file='a.txt')))
    with pytest.raises(ValueError, match='this config has a CustomDataset'):
        set_data_root(cfg, str(tmp_path / 'list.csv'))
    folder = dict(type='mmpatchmix.ImageFolder', data_root='')
    cfg = Config(dict(data_root='data/mine', dataset=folder))  # a variable beside it
    set_data_root(cfg, str(tmp_path / 'list.csv'))
    assert cfg.dataset.data_root == str(tmp_path / 'list.csv')


def test_workers_reach_every_loader_and_none_build_one():
    cfg = Config.fromfile('configs/patchmix_vit-s_in1k.py')
    cfg.train_dataloader.prefetch_factor = 4
    set_workers(cfg, 3)
    assert all(loader.num_workers == 3 and loader.persistent_workers for loader in loaders(cfg))
    set_workers(cfg, 0)
    for loader in loaders(cfg):
        options = {k: loader.get(k) for k in ('num_workers', 'persistent_workers')}
        torch.utils.data.DataLoader([1], **options, prefetch_factor=loader.get('prefetch_factor'))
        assert options['num_workers'] == 0


BF16 = 'mmpatchmix.BF16OptimWrapper'


@pytest.mark.parametrize(
    ('flag', 'wrapper', 'expected'),
    [
        (['--amp'], dict(type=BF16, enabled='auto'), dict(type=BF16, enabled=True)),
        (['--no-amp'], dict(type=BF16, enabled='auto'), dict(type=BF16, enabled=False)),
        (['--amp'], dict(type='AmpOptimWrapper'), dict(type=BF16, enabled=True)),
        (['--no-amp'], dict(type='AmpOptimWrapper', dtype='float16'), dict(type='OptimWrapper')),
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
    with pytest.raises(ValueError, match=r'--amp and --no-amp change .*ApexOptimWrapper'):
        set_precision(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), False)


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
    with pytest.raises(ValueError, match="runner_type='NoRunner'"):
        build_runner(Config(dict(runner_type='NoRunner')))


def test_secrets_of_the_environment_give_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRACKER_API_KEY', 'abc')
    monkeypatch.setenv('PATCHMIX_SIDE', '32')
    lines = "side = int('{{$PATCHMIX_SIDE:16}}')\nkey = '{{$TRACKER_API_KEY:none}}'\n"
    (tmp_path / 'config.py').write_text(lines)
    cfg = Config.fromfile(tmp_path / 'config.py')
    capsys.readouterr()
    warn_about_secrets(cfg)
    told = capsys.readouterr().err
    assert 'TRACKER_API_KEY' in told and 'SIDE' not in told and 'abc' not in told


def test_the_launcher_is_found_or_its_absence_refused(monkeypatch):
    names = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert find_launcher('none') == 'none'
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert find_launcher('slurm') == 'slurm'
    with pytest.raises(ValueError, match=r'WORLD_SIZE=2, but .* --launcher'):
        find_launcher('none')
    for name in names:
        monkeypatch.setenv(name, '2')
    assert find_launcher('none') == 'pytorch'


@pytest.mark.parametrize('number', ['0', '1'])
def test_of_a_slurm_job_the_first_task_alone_prepares_the_work_dir(tmp_path, monkeypatch, number):
    monkeypatch.setenv('RANK', '')  # restored afterwards
    monkeypatch.delenv('RANK')
    monkeypatch.setenv('SLURM_PROCID', number)
    load_config(train.parse_args(['patchmix_vit-digits', '--launcher', 'slurm']))
    (tmp_path / 'epoch_1.pth').touch()
    train.prepare_work_dir(tmp_path, overwrite=True)
    assert (tmp_path / 'epoch_1.pth').exists() == (number != '0')


def test_home_is_expanded_in_arguments_and_configs(tmp_path, monkeypatch):
    (tmp_path / 'a.py').write_text(
        "load_from = '~/b.pth'\ntrain_dataloader = dict(dataset=dict(data_root='~/data', n='~'))\n"
        "test_evaluator = [dict(ann_file=['~/d.json', 'e'], pairs=[('~/f', 1)])]\n"
    )
    monkeypatch.setenv('HOME', str(tmp_path))
    args = train.parse_args(['~/a.py', '--work-dir=~/run', '--resume', '~/c.pth'])
    assert (args.work_dir, args.resume) == (f'{tmp_path}/run', f'{tmp_path}/c.pth')
    cfg = load_config(args)
    assert (cfg.load_from, cfg.work_dir) == (f'{tmp_path}/b.pth', f'{tmp_path}/run')
    assert cfg.train_dataloader.dataset == dict(data_root=f'{tmp_path}/data', n='~')
    pairs = [(f'{tmp_path}/f', 1)]
    assert cfg.test_evaluator == [dict(ann_file=[f'{tmp_path}/d.json', 'e'], pairs=pairs)]
