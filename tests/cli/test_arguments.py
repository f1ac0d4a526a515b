"""Arguments become config values."""

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
    with pytest.raises(ValueError, match='--val-root needs a config that trains on images of'):
        set_val_root(Config.fromfile('configs/patchmix_vit-digits.py'), '/my/val.csv')


@pytest.mark.parametrize('names', ['a.tar', 'a.tar pack.json shards-1.index.npz .lock b.tar'])
def test_a_folder_of_tar_files_is_read_as_shards(tmp_path, names):
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


def test_patterns_and_urls_of_tar_files_are_read_as_shards():
    for location in ('shards/train-{000000..000009}.tar', 'http://host/{0..3}.tar', '~/a*.tar'):
        cfg = Config.fromfile('configs/patchmix_vit-s_folder.py')
        set_data_root(cfg, location)
        assert {loader.dataset.type for loader in loaders(cfg)} == {'mmpatchmix.ShardedImages'}
        assert {loader.dataset.data_root for loader in loaders(cfg)} == {location}


@pytest.mark.parametrize('names', ['', 'a.tar b.jpg', 'a.tar n01440764/c.JPEG'])
def test_a_folder_of_tar_files_and_images_is_not_read_as_shards(tmp_path, names):
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert not holds_shards(str(tmp_path))


def test_data_root_changes_annotation_files_of_evaluators():
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
    with pytest.raises(ValueError, match=r'this config has a CustomDataset, which takes a folder'):
        set_data_root(cfg, str(tmp_path / 'list.csv'))
    with pytest.raises(ValueError, match='no data set of this config has a data_root'):
        set_data_root(Config(dict(data_root='data/coco')), '/my/images')
    folder = dict(type='mmpatchmix.ImageFolder', data_root='')
    cfg = Config(dict(data_root='data/mine', dataset=folder))  # a variable beside it
    set_data_root(cfg, str(tmp_path / 'list.csv'))
    assert cfg.dataset.data_root == str(tmp_path / 'list.csv')


def test_zero_workers_build_a_data_loader():
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
def test_a_fixed_precision_is_refused(wrapper):
    with pytest.raises(ValueError, match=r'--amp and --no-amp: .*(missing|ApexOptimWrapper)'):
        set_precision(Config(dict(optim_wrapper=wrapper)), False)


@pytest.mark.parametrize('accelerator', [True, False])
def test_freed_memory_is_kept_without_an_accelerator_only(monkeypatch, accelerator):
    calls = []
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: accelerator)
    monkeypatch.setattr(build_module, 'keep_freed_memory', lambda: calls.append('kept'))
    monkeypatch.setattr(
        RUNNERS,
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


def test_an_unknown_runner_is_refused(tmp_path):
    cfg = tiny_run_config(tmp_path)
    cfg.runner_type = 'NoRunner'
    with pytest.raises(ValueError, match="runner_type='NoRunner'"):
        build_runner(cfg)


def test_secrets_of_the_environment_give_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRACKER_API_KEY', 'abc')
    monkeypatch.setenv('PATCHMIX_SIDE', '32')
    lines = "side = int('{{$PATCHMIX_SIDE:16}}')\nkey = '{{$TRACKER_API_KEY:none}}'\n"
    (tmp_path / 'config.py').write_text(lines)
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert (cfg.side, cfg.key) == (32, 'abc')
    capsys.readouterr()
    warn_about_secrets(cfg)
    told = capsys.readouterr().err
    assert 'TRACKER_API_KEY' in told and 'SIDE' not in told and 'abc' not in told


TORCHRUN = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.mark.parametrize(
    ('launcher', 'names', 'num_ranks', 'expected'),
    [
        ('none', (), 1, 'none'),
        ('none', TORCHRUN[:1], 1, 'none'),
        ('slurm', TORCHRUN[:1], 2, 'slurm'),
        ('none', TORCHRUN, 2, 'pytorch'),
        ('none', TORCHRUN[:1], 2, None),
    ],
)
def test_the_launcher_is_found_or_its_absence_refused(
    monkeypatch, launcher, names, num_ranks, expected
):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name in names:
        monkeypatch.setenv(name, str(num_ranks))
    if expected is not None:
        assert find_launcher(launcher) == expected
        return
    with pytest.raises(ValueError, match=r'WORLD_SIZE=2, but .* --launcher'):
        find_launcher(launcher)
