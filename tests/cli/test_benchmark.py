"""tools/benchmark.py as a user calls it: one process, two ranks, no images at hand."""

import json
import tempfile
from pathlib import Path

import pytest

from tests.cli.test_command_line import ROOT, call, python

TINY_NETWORK = """
    backbone=dict(
        arch=dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24), {backbone}
    ),
    neck=dict(in_channels=12, hid_channels=16, out_channels=8),
    head=dict(predictor=dict(in_channels=8, hid_channels=16, out_channels=8)),
"""


@pytest.fixture
def scratch():
    """Where temporary files go; nothing may stay.

    Not below pytest's own folder: a worker's socket lies in it, whose path may have 107
    characters, and the data loader waits for ever for a worker that finds it too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        left = [path for path in Path(folder).iterdir() if path.name.startswith('mmpatchmix')]
        assert not left


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
    names = ('data only', 'step only', 'together', 'memory', 'duration', 'verdict')
    for name in names:
        assert sum(line.startswith(name) for line in lines) == 1
    assert figures['verdict'].split('.')[0] in text.replace(last, '')
    images = figures['num_ranks'] * figures['batch_size']
    # A rank's own duration is at most the worst one.
    assert images / figures['step_seconds'] <= figures['step_rate'] * (1 + 1e-9)
    assert images / figures['iteration_seconds'] <= figures['together_rate'] * (1 + 1e-9)
    assert figures['preprocess_seconds'] > 0 and 0 <= figures['waiting_share'] < 1
    assert figures['workers_needed'] >= 1
    assert figures['epoch_seconds'] >= figures['iters_per_epoch'] * figures['iteration_seconds']
    return figures


def test_everything_is_told_and_nothing_is_written(digits, tmp_path, scratch):
    work_dir = tmp_path / 'work'
    before = sorted(ROOT.glob('work_dirs/*'))
    text = python(
        'benchmark.py', digits, '--iters', 2, '--json', '--work-dir', work_dir, TMPDIR=str(scratch)
    )
    figures = figures_of(text)
    assert (figures['num_images'], figures['iters_per_epoch'], figures['num_iters']) == (48, 6, 420)
    assert (figures['num_workers'], figures['batch_size'], figures['num_ranks']) == (0, 8, 1)
    assert figures['limit'] in ('step', 'no workers') and f'{digits} on ' in text
    assert 'Traceback' not in text and 'WARNING' not in text
    assert not work_dir.exists() and sorted(ROOT.glob('work_dirs/*')) == before


def test_without_images_at_hand(folder_of_images, scratch):
    options = ('--synthetic', '--iters', 2, '--batch-size', 4, '--workers', 1, '--no-amp', '--json')
    text = python('benchmark.py', folder_of_images, *options, TMPDIR=str(scratch))
    figures = figures_of(text)
    assert (figures['num_workers'], figures['batch_size']) == (1, 4)
    assert figures['num_images'] == 1_281_167 and figures['iters_per_epoch'] == 1_281_167 // 4
    assert figures['num_iters'] == 300 * figures['iters_per_epoch']
    assert 'with made-up images' in text and figures['precision'] == 'float32'


def test_two_ranks_measure_together_and_one_tells(digits, scratch):
    options = ('--launcher', 'pytorch', '--seconds', 1, '--images', 1600, '--json')
    text = call(
        'bash', 'tools/torchrun.sh', 2, 'tools/benchmark.py', digits, *options, TMPDIR=str(scratch)
    )
    start = text.index(f'{digits} on ')
    figures = figures_of(text[start:])
    assert figures['num_ranks'] == 2 and 'batch 8 x 2 processes' in text
    assert figures['iters_per_epoch'] == 100
    assert text.count('\nstep only') == 1


@pytest.mark.parametrize(
    ('arguments', 'messages'),
    [
        (
            ('{folder}', '--data-root', '/no/such'),
            ['/no/such', '--synthetic measures', '--data-root'],
        ),
        (('{digits}', '--synthetic'), ['this config reads mmpatchmix.Digits']),
    ],
)
def test_mistakes_end_in_one_message(folder_of_images, digits, arguments, messages):
    arguments = [part.format(folder=folder_of_images, digits=digits) for part in arguments]
    text = python('benchmark.py', *arguments, ok=False)
    assert 'Traceback' not in text
    for message in messages:
        assert message in text
