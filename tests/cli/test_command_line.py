"""The command-line tools in processes: one rank, two ranks, two nodes."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from tests.calls import call, call_tool, environment

ROOT = Path(__file__).parents[2]
QUICK = 'default_hooks.report.evaluate_untrained=False'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The digits recipe with a toy network and 6 iterations an epoch."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/patchmix_vit-digits.py'
model = dict(
    backbone=dict(
        arch=dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24)
    ),
    neck=dict(in_channels=12, hid_channels=16, out_channels=8),
    head=dict(predictor=dict(in_channels=8, hid_channels=16, out_channels=8)),
)
train_dataloader = dict(batch_size=8, dataset=dict(indices=48))
few = dict(dataset=dict(indices=31))  # odd: two ranks cannot share it evenly
val_dataloader = test_dataloader = few
val_cfg = test_cfg = dict(bank_dataloader=few)
default_hooks = dict(
    checkpoint=dict(interval=1), logger=dict(interval=3), report=dict(pictures=False)
)
""")
    return path


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    """A run of two epochs: its folder and its console."""
    work_dir = tmp_path_factory.mktemp('run') / 'work'
    options = ('--work-dir', work_dir, '--epochs', 2, '--seed', 3)
    text = call_tool('train.py', config, *options)
    return work_dir, text


def reported(text, name='knn/top1'):
    return float(re.findall(rf'{name}:?\s+([\d.]+)', text)[-1])


def test_training_prints_the_recipe_and_writes_the_documented_files(trained):
    work_dir, text = trained
    for part in ('2 epochs x 6 = 12 iterations', 'ETA ', '  loss ', 'untrained', 'raw pixels'):
        assert part in text
    for name in ('epoch_2.pth', 'mixed.png', 'report.html', 'last_checkpoint'):
        assert (work_dir / name).stat().st_size > 0
        assert name == 'last_checkpoint' or str(work_dir / name) in text
    assert list(work_dir.glob('*/vis_data/events.*'))
    (log,) = work_dir.glob('*/*.log')
    assert 'System environment' not in text and 'System environment' in log.read_text()
    assert 'Hooks will be executed' not in text


def test_resume_continues_from_a_named_checkpoint(config, trained, tmp_path):
    work_dir, _ = trained
    checkpoint = work_dir / 'epoch_1.pth'
    options = ('--work-dir', tmp_path, '--epochs', 2, '--cfg-options', QUICK)
    text = call_tool('train.py', config, *options, '--resume', checkpoint)
    assert 'Epoch 2/2  loss ' in text and 'Epoch 1/2' not in text
    state = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert (state['meta']['epoch'], state['meta']['iter']) == (2, 12)


def test_offline_knn_equals_online_knn_on_one_and_two_ranks(config, trained, tmp_path):
    work_dir, _ = trained
    log = next(work_dir.glob('*/*.log')).read_text()
    online = reported(log, 'knn/top1:')
    checkpoint, out = work_dir / 'epoch_2.pth', tmp_path / 'metrics.json'
    call_tool('test.py', config, checkpoint, '--work-dir', tmp_path, '--out', out)
    assert json.loads(out.read_text())['knn/top1'] == pytest.approx(online, abs=1e-4)
    two = call('bash', 'tools/dist_test.sh', config, checkpoint, 2, '--work-dir', tmp_path / 'two')
    assert reported(two) == pytest.approx(online, abs=1e-4)


def test_two_nodes_train_together(config, tmp_path):
    """NNODES, NODE_RANK, MASTER_ADDR and PORT, on loopback over gloo."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    nodes = []
    for rank in range(2):
        env = dict(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1', PORT=port)
        command = ['bash', 'tools/dist_train.sh', str(config), '1', '--work-dir', str(tmp_path)]
        nodes.append(
            subprocess.Popen(
                [*command, '--epochs', '1', '--cfg-options', QUICK],
                cwd=ROOT,
                env=environment(**env),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    texts = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    assert '8 x 2 ranks = 16' in texts[0] and '1 epochs x 3 = 3 iterations' in texts[0]
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_dry_run_writes_nothing(config, tmp_path):
    text = call_tool('train.py', config, '--work-dir', tmp_path / 'none', '--dry-run', '--amp')
    assert 'one step: loss' in text and 'bfloat16 autocast' in text
    assert not (tmp_path / 'none').exists()
    assert str(tmp_path / 'none') in text


@pytest.mark.parametrize('tool', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_shell_tools_print_their_usage(tool):
    text = call('bash', f'tools/{tool}', ok=False)
    assert f'bash tools/{tool}' in text and 'CONFIG' in text


@pytest.mark.parametrize(
    ('env', 'arguments', 'message'),
    [
        (dict(NNODES='garbage'), (), "NNODES must be a whole number, not 'garbage'"),
        (dict(NNODES='0'), (), 'NNODES must be at least 1'),
        (dict(NNODES='2', NODE_RANK='2', MASTER_ADDR='a'), (), 'NODE_RANK=2 must be below'),
        (dict(NNODES='2', NODE_RANK='0', MASTER_ADDR='a', PORT='x'), (), 'PORT must be a whole'),
        (dict(), ('--max-restarts', 'often'), '--max-restarts must be a whole number'),
        (dict(), ('--max-restarts=',), '--max-restarts must be a whole number'),
    ],
)
def test_wrong_node_variables_are_refused_at_once(config, env, arguments, message):
    text = call('bash', 'tools/dist_train.sh', config, '2', *arguments, ok=False, **env)
    assert message in text and len(text) < 200


def test_restarts_resume_from_the_last_checkpoint(config, tmp_path):
    """Both ranks restart after one died, in a new store."""
    broken = tmp_path / 'broken.py'
    hook = tmp_path / 'dying_hook.py'
    hook.write_text(
        'import os, time\nfrom mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n'
        '@HOOKS.register_module(force=True)\nclass DyingHook(Hook):\n'
        '    def before_train_epoch(self, runner):\n'
        "        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if first and runner.epoch == 1 and os.environ['RANK'] == '1':\n"
        '            while not os.path.exists(runner.work_dir + "/last_checkpoint"):\n'
        '                time.sleep(0.1)\n'
        '            os._exit(1)\n'
    )
    broken.write_text(
        f"_base_ = '{config}'\n"
        "custom_imports = dict(imports=['mmpatchmix.registry', 'dying_hook'])\n"
        "custom_hooks = [dict(type='DyingHook')]\n"
        'default_hooks = dict(report=dict(evaluate_untrained=False))\n'
    )
    command = ['bash', 'tools/dist_train.sh', broken, 2, '--max-restarts', '1', '--epochs', '2']
    path = f'{tmp_path}{os.pathsep}{ROOT}'
    text = call(*command, '--work-dir', tmp_path / 'run', PYTHONPATH=path)
    assert 'Epoch 2/2  loss ' in text
    assert text.count('Epoch 1/2  loss ') == 1
    assert (tmp_path / 'run' / 'epoch_2.pth').is_file()
