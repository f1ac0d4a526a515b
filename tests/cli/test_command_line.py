"""The verbs train and test, on two ranks too, and the shell tools after a restart."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from mmpatchmix.__main__ import main
from tests.calls import call
from tests.engine.tiny_run import tiny_run_config
from tests.faults.processes import run_ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A toy run of 4 iterations an epoch; two ranks cannot share its held-out images evenly."""
    loaders = ('val_dataloader', 'test_dataloader', 'val_cfg.bank_dataloader')
    odd = {f'{name}.dataset.indices': 31 for name in loaders}
    cfg = tiny_run_config('', num_images=32, report=True, **odd)
    cfg.test_cfg = cfg.val_cfg
    cfg.pop('experiment_name')
    cfg.pop('work_dir')
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    cfg.dump(path)
    return path


def run(*arguments):
    """Run a verb in this process."""
    main([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def work_dir(config, tmp_path_factory):
    """A run of one epoch."""
    path = tmp_path_factory.mktemp('run') / 'work'
    run('train', config, '--work-dir', path, '--epochs', 1, '--seed', 3)
    return path


def read_knn(work_dir):
    """Return the last online kNN accuracy, in percent."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    rows = map(json.loads, path.read_text().splitlines())
    return [row['knn/top1'] for row in rows if 'knn/top1' in row][-1]


def test_training_writes_the_documented_files(work_dir):
    (log,) = work_dir.glob('*/*.log')
    text = log.read_text()
    for name in ('epoch_1.pth', 'mixed.png', 'report.html'):
        assert (work_dir / name).stat().st_size > 0 and str(work_dir / name) in text
    assert list(work_dir.glob('*/vis_data/events.*')) and (work_dir / 'last_checkpoint').is_file()
    for part in ('1 epochs x 4 = 4 iterations', 'loss_mix_mix', 'untrained', 'raw pixels'):
        assert part in text
    assert 'System environment' in text


def test_offline_knn_equals_online_knn(config, work_dir, tmp_path, capsys):
    out = tmp_path / 'metrics.json'
    run('test', config, work_dir, '--work-dir', tmp_path / 'test', '--out', out)
    metrics = json.loads(out.read_text())
    assert metrics['knn/top1'] == pytest.approx(read_knn(work_dir), abs=1e-4)
    assert 'knn/top1' in capsys.readouterr().out


def test_two_ranks_evaluate_as_one(config, work_dir, tmp_path):
    command = ['test', str(config), str(work_dir / 'epoch_1.pth'), '--launcher', 'pytorch']
    texts = run_ranks(tmp_path, main, [*command, '--work-dir', str(tmp_path)])
    (top1,) = re.findall(r'^ +knn/top1 +([\d.]+)', texts[0], re.MULTILINE)
    assert float(top1) == pytest.approx(read_knn(work_dir), abs=1e-4)
    assert 'knn/top1 ' not in texts[1]


def test_dry_run_writes_nothing(config, tmp_path, capfd):
    run('train', config, '--work-dir', tmp_path / 'none', '--dry-run', '--amp')
    text = capfd.readouterr().out
    assert 'one step: loss' in text and 'bfloat16 autocast' in text
    assert 'System environment' not in text and 'Hooks will be executed' not in text
    assert not (tmp_path / 'none').exists()
    assert str(tmp_path / 'none') in text


def test_shell_tools_print_their_usage():
    for tool in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh'):
        text = call('bash', f'tools/{tool}', ok=False)
        assert f'bash tools/{tool}' in text and 'CONFIG' in text
    assert 'usage: bash tools/torchrun.sh PROCESSES' in call('bash', 'tools/torchrun.sh', ok=False)


@pytest.mark.parametrize(
    ('env', 'arguments', 'message'),
    [
        (dict(NNODES='garbage'), (), "NNODES must be a whole number, not 'garbage'"),
        (dict(NNODES='0'), (), 'NNODES must be at least 1'),
        (dict(NNODES='2', NODE_RANK='2', MASTER_ADDR='a'), (), 'NODE_RANK=2 must be below'),
        (dict(), ('--max-restarts=',), '--max-restarts must be a whole number'),
    ],
)
def test_wrong_node_variables_are_refused_at_once(config, env, arguments, message):
    text = call('bash', 'tools/dist_train.sh', config, '2', *arguments, ok=False, **env)
    assert message in text and len(text) < 200


HOOK = """
import os, time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class DyingHook(Hook):
    def before_train_epoch(self, runner):
        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'
        if first and runner.epoch == 1 and os.environ['RANK'] == '1':
            while not os.path.exists(runner.work_dir + '/last_checkpoint'):
                time.sleep(0.1)
            os._exit(1)
"""


@pytest.mark.program
def test_two_ranks_restart_and_resume_from_the_last_checkpoint(config, tmp_path):
    """Both restart after one died, in a new store."""
    broken = tmp_path / 'broken.py'
    (tmp_path / 'dying_hook.py').write_text(HOOK)
    broken.write_text(f"""
_base_ = '{config}'
custom_imports = dict(imports=['mmpatchmix.registry', 'dying_hook'])
custom_hooks = [dict(type='DyingHook')]
default_hooks = dict(report=dict(evaluate_untrained=False, pictures=False))
""")
    command = ['bash', 'tools/dist_train.sh', broken, 2, '--max-restarts', '1', '--epochs', '2']
    path = f'{tmp_path}{os.pathsep}{ROOT}'
    text = call(*command, '--work-dir', tmp_path / 'run', PYTHONPATH=path)
    assert '8 x 2 ranks = 16' in text and '2 epochs x 2 = 4 iterations' in text
    assert text.count('Epoch 1/2  loss ') == text.count('Epoch 2/2  loss ') == 1
    assert (tmp_path / 'run' / 'epoch_2.pth').is_file()


def test_resume_without_a_checkpoint_starts_from_load_from(config, work_dir, tmp_path):
    """--auto-scale-lr counts the images of an optimizer step: 8 x 4 of the recipe's 128."""
    start = work_dir / 'epoch_1.pth'
    options = [f'load_from={start}', 'optim_wrapper.accumulative_counts=4', 'val_cfg=None']
    options += ['val_dataloader=None', 'val_evaluator=None', 'param_scheduler=None']
    place = '--work-dir', tmp_path, '--epochs', 1, '--auto-scale-lr', '--resume'
    run('train', config, *place, '--cfg-options', *options)
    (log,) = tmp_path.glob('*/*.log')
    assert f'Load checkpoint from {start}' in log.read_text()
    (group, _) = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['optimizer'][
        'param_groups'
    ]
    assert group['lr'] == pytest.approx(3e-3 * 32 / 128)
