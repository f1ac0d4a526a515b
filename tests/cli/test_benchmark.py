"""The verb ``benchmark`` as a user calls it: one process, two ranks, no images at hand."""

import json
import tempfile
from pathlib import Path

import pytest

from tests.calls import call, call_tool

ROOT = Path(__file__).parents[2]
TINY_NETWORK = """
    backbone=dict(
        arch=dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24), {backbone}
    ),
    neck=dict(in_channels=12, hid_channels=16, out_channels=8),
    head=dict(predictor=dict(in_channels=8, hid_channels=16, out_channels=8)),
"""


@pytest.fixture
def benchmark():
    """Run a command and return its output. Nothing may stay where temporary files go.

    Not below pytest's own folder: a worker's socket lies there, whose path may have 107
    characters, and the data loader waits for ever for a worker that finds it too long.
    """
    with tempfile.TemporaryDirectory() as folder:

        def run(*command, ok=True):
            calling = call if command[0] == 'bash' else call_tool
            said = calling(*command, ok=ok, TMPDIR=folder)
            assert 'Traceback' not in said
            return said

        before = sorted(ROOT.glob('work_dirs/*'))
        yield run
        assert sorted(ROOT.glob('work_dirs/*')) == before
        assert not [path for path in Path(folder).iterdir() if path.name.startswith('mmpatchmix')]


@pytest.fixture
def digits(tmp_path):
    """The digits recipe with a toy network and 6 iterations an epoch."""
    path = tmp_path / 'digits.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/patchmix_vit-digits.py'
model = dict({TINY_NETWORK.format(backbone='')})
train_dataloader = dict(batch_size=8, dataset=dict(indices=48))
""")
    return path


@pytest.fixture
def folder_of_images(tmp_path):
    """The recipe for a folder of images with a toy network."""
    path = tmp_path / 'folder.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/patchmix_vit-s_folder.py'
model = dict({TINY_NETWORK.format(backbone='img_size=224, patch_size=32')})
model['data_preprocessor'] = dict(patch_size=32)
""")
    return path


def figures_of(text):
    """The JSON line, checked against itself and the lines for people."""
    *lines, last = text.strip().splitlines()
    figures = json.loads(last)
    for name in ('data only', 'step only', 'together', 'memory', 'duration', 'verdict'):
        assert sum(line.startswith(name) for line in lines) == 1
        assert text.count(f'measuring: {name}') == (name in ('data only', 'step only', 'together'))
    assert f'verdict    {figures["verdict"]}' in lines
    assert min(figures['data_rate'], figures['step_rate']) > 0 <= figures['memory_gib']
    seconds = figures['num_images'] / figures['together_rate']
    assert figures['epoch_seconds'] == pytest.approx(seconds)
    return figures


@pytest.mark.parametrize('workers', [0, 1])
def test_everything_is_told_and_nothing_is_written(benchmark, digits, workers):
    options = ('--seconds', 0.2, '--workers', workers, '--json')
    text = benchmark('benchmark', digits, *options)
    figures = figures_of(text)
    assert (figures['num_images'], figures['num_epochs']) == (48, 80)
    assert [figures[f'num_{name}'] for name in ('workers', 'ranks')] == [workers, 1]
    assert figures['batch_size'] == 8 and f'{digits} on ' in text and 'WARNING' not in text


def test_without_images_at_hand(benchmark, folder_of_images):
    options = ('--synthetic', '--seconds', 0.2, '--batch-size', 4, '--workers', 1, '--no-amp')
    text = benchmark('benchmark', folder_of_images, *options, '--json')
    figures = figures_of(text)
    assert (figures['num_workers'], figures['batch_size']) == (1, 4)
    assert (figures['num_images'], figures['num_epochs']) == (1_281_167, 300)


def test_two_ranks_measure_together_and_one_tells(benchmark, digits):
    options = ('--launcher', 'pytorch', '--seconds', 0.2, '--images', 1600, '--json')
    command = ('bash', 'tools/torchrun.sh', 2, '-m', 'mmpatchmix', 'benchmark')
    text = benchmark(*command, digits, *options)
    figures = figures_of(text)
    assert (figures['num_ranks'], figures['num_images']) == (2, 1600)


def test_a_config_without_a_folder_of_images_cannot_be_synthetic(benchmark, digits):
    text = benchmark('benchmark', digits, '--synthetic', ok=False)
    assert 'ValueError: --synthetic: this config reads mmpatchmix.Digits' in text
