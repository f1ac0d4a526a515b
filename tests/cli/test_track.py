"""Trackers: their back ends get figures and config, and a missing package is told before."""

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mmpatchmix.cli import arguments as track
from mmpatchmix.cli.train import main
from tests.engine.tiny_run import tiny_run_config


def make_config(work_dir):
    backends = "visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])"
    (work_dir / 'mine.py').write_text(f"{backends}\nlr = 0.1\nwork_dir = '{work_dir}/first'\n")
    return Config.fromfile(work_dir / 'mine.py')


def record_calls(name, calls):
    """Make a package that notes down what is called in it."""
    module = ModuleType(name)
    module.__getattr__ = lambda attribute: (
        lambda *args, **kwargs: calls.append((attribute, args, kwargs))
    )
    return module


@pytest.mark.parametrize('name', track.TRACKERS)
def test_a_missing_package_is_told_in_one_line_before_anything_is_built(
    tmp_path, monkeypatch, name
):
    find = track.find_spec
    monkeypatch.setattr(track, 'find_spec', lambda n: None if n == name else find(n))
    with pytest.raises(SystemExit) as end:
        main(['patchmix_vit-digits', '--track', name, '--work-dir', str(tmp_path / 'run')])
    message = str(end.value).strip().splitlines()[0]
    assert message.endswith(f'which is not installed: pip install {name}')
    assert not (tmp_path / 'run').exists()


def test_every_back_end_is_one_that_mmengine_builds(tmp_path, monkeypatch):
    monkeypatch.setattr(track, 'find_spec', lambda name: True)
    cfg = make_config(tmp_path)
    track.set_trackers(cfg, track.TRACKERS)
    built = [
        VISBACKENDS.build(dict(b, save_dir=str(tmp_path))) for b in cfg.visualizer.vis_backends
    ]
    kinds = ['LocalVisBackend', 'MLflowVisBackend', 'WandbVisBackend', 'AimVisBackend']
    assert [type(backend).__name__ for backend in built] == kinds
    cfg.pop('visualizer')
    with pytest.raises(ValueError, match=r'needs a config with visualizer\.vis_backends'):
        track.set_trackers(cfg, ['aim'])
    plain = make_config(tmp_path)
    track.set_trackers(plain, [])
    assert plain.visualizer == make_config(tmp_path).visualizer


def test_mlflow_gets_one_experiment_per_config_in_one_store(tmp_path, monkeypatch):
    """Through mmengine's visualizer, with a stand-in for the package."""
    MMLogger.get_instance(str(tmp_path))  # the back end looks at it; an older one may be closed
    calls = []
    monkeypatch.setitem(sys.modules, 'mlflow', record_calls('mlflow', calls))
    monkeypatch.setattr(track, 'find_spec', lambda name: True)
    monkeypatch.chdir(tmp_path)
    cfg = make_config(tmp_path)
    track.set_trackers(cfg, ['mlflow'])
    (backend,) = cfg.visualizer.vis_backends[1:]
    visualizer = Visualizer(vis_backends=[dict(backend)], save_dir=str(tmp_path / 'vis'))
    visualizer.add_config(cfg)
    visualizer.add_scalars({'loss': 2.0, 'health/lidar': 9.0}, step=3)
    said = {name: args for name, args, _ in calls}
    assert said['set_tracking_uri'] == (f'sqlite:///{tmp_path}/mlflow.db',)
    assert said['set_experiment'] == ('mine',)
    assert said['set_tag'] == ('mlflow.runName', 'first')
    assert said['log_params'][0]['lr'] == 0.1
    assert said['log_metrics'] == ({'loss': 2.0, 'health/lidar': 9.0}, 3)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://server:5000')
    track.set_trackers(cfg, ['mlflow'])
    assert cfg.visualizer.vis_backends[-1]['tracking_uri'] == 'http://server:5000'


@pytest.mark.skipif(find_spec('wandb') is None, reason='needs wandb, 27 MB: pip install wandb')
def test_a_run_without_a_network_reaches_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    cfg = tiny_run_config(tmp_path / 'run', 1)
    track.set_trackers(cfg, ['wandb'])
    Runner.from_cfg(cfg).train()
    sys.modules['wandb'].finish()
    (path,) = tmp_path.glob('run/*/vis_data/wandb/offline-run-*/*.wandb')
    content = path.read_bytes()
    for name in ('knn/top1', 'health/data_share', 'patchmix_vit-digits', 'temperature'):
        assert name.encode() in content


@pytest.mark.skipif(find_spec('mlflow') is None, reason='needs mlflow, 400 MB: pip install mlflow')
def test_a_run_reaches_mlflow(tmp_path, monkeypatch):
    import mlflow

    cfg = tiny_run_config(tmp_path / 'run', 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    track.set_trackers(cfg, ['mlflow'])
    Runner.from_cfg(cfg).train()
    (run,) = mlflow.search_runs(experiment_names=['patchmix_vit-digits'], output_format='list')
    assert run.data.metrics.keys() >= {'loss', 'knn/top1', 'health/data_share'}
    assert run.data.params['model.head.temperature'] == '0.2'


@pytest.mark.skipif(find_spec('aim') is None, reason='needs aim, 400 MB: pip install aim')
def test_a_run_reaches_aim(tmp_path):
    """Its reader need not see what it has just written; its files hold it once the run is over."""
    tiny_run_config(tmp_path / 'run', 1).dump(tmp_path / 'tiny.py')
    command = [sys.executable, '-m', 'mmpatchmix', 'train', 'tiny.py', '--track', 'aim']
    done = subprocess.run(
        [*command, '--work-dir', 'run'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = b''.join(path.read_bytes() for path in tmp_path.glob('.aim/meta/chunks/*/*.sst'))
    for name in ('loss_mix_source', 'temperature'):
        assert name.encode() in content
