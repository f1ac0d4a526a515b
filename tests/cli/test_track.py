"""Trackers get metrics and config of a run; a missing package is named before anything is built."""

import sys
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mmpatchmix.cli import arguments
from mmpatchmix.cli.arguments import set_trackers
from mmpatchmix.cli.train import main
from tests.engine.tiny_run import tiny_run_config


def test_a_missing_package_is_named_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, 'find_spec', lambda name: name == 'mlflow' or None)
    options = ['--track', 'mlflow', '--track', 'wandb', '--work-dir', str(tmp_path / 'run')]
    with pytest.raises(SystemExit, match=r"wandb, which is not .*: pip install 'mmpatchmix\[track"):
        main(['patchmix_vit-digits', *options])
    assert not (tmp_path / 'run').exists()


def test_the_store_of_mlflow_can_be_set_by_its_variable(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, 'find_spec', lambda name: True)
    with pytest.raises(ValueError, match=r'needs a config with visualizer\.vis_backends'):
        set_trackers(Config(dict(work_dir='run')), ['wandb'])
    cfg = tiny_run_config(tmp_path)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://server:5000')
    set_trackers(cfg, ['mlflow'])
    assert cfg.visualizer.vis_backends[-1]['tracking_uri'] == 'http://server:5000'


@pytest.mark.skipif(find_spec('wandb') is None, reason='needs wandb, of the extra [track]')
def test_an_offline_run_is_written_by_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    cfg = tiny_run_config(tmp_path / 'run', 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'private.py').touch()
    set_trackers(cfg, ['wandb'])
    Runner.from_cfg(cfg).train()
    wandb = sys.modules['wandb']
    wandb.finish()
    wandb.teardown()  # its service has written the file when it has ended
    (path,) = tmp_path.glob('run/*/vis_data/wandb/offline-run-*/*.wandb')
    content = path.read_bytes()
    for name in ('knn/top1', 'health/data_share', 'patchmix_vit-digits', 'temperature'):
        assert name.encode() in content
    assert b'private.py' not in content


@pytest.mark.skipif(find_spec('mlflow') is None, reason='needs mlflow-skinny, of the extra [track]')
def test_a_run_is_written_to_the_store_of_mlflow(tmp_path, monkeypatch):
    import mlflow

    cfg = tiny_run_config(tmp_path / 'run', 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    set_trackers(cfg, ['mlflow'])
    Runner.from_cfg(cfg).train()
    mlflow.end_run()
    client = mlflow.MlflowClient(tracking_uri=f'sqlite:///{tmp_path}/mlflow.db')
    experiment = client.get_experiment_by_name('patchmix_vit-digits')
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags['mlflow.runName'] == 'run'
    assert run.data.metrics.keys() >= {'loss', 'knn/top1', 'health/data_share'}
    assert run.data.params['model.head.temperature'] == '0.2'
