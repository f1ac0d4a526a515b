"""Runs that nothing interrupted, for all others to be compared with."""

import time

import pytest

from mmpatchmix.registry import MODELS
from tests.faults.processes import finish, start
from tests.faults.runs import build, train


@pytest.fixture(scope='session')
def imported(tmp_path_factory):
    """Import what a run imports, so that forked processes need not."""
    import torch.utils.tensorboard  # noqa: F401

    runner = build(tmp_path_factory.mktemp('imported'), **{'visualizer.vis_backends': []})
    assert runner.train_loop and runner.val_loop and 'PatchMix' in MODELS


@pytest.fixture(scope='session')
def uninterrupted(imported, tmp_path_factory):
    """Folders with all checkpoints of a run, by seed, and how many seconds it took."""
    folder, found = tmp_path_factory.mktemp('uninterrupted'), {}
    for seed in (0, None):
        work_dir, began = folder / f'{seed}', time.monotonic()
        process = start(
            folder / f'{seed}.txt', train, work_dir, {'randomness.seed': seed}, (), True
        )
        assert finish(process) == 0, (folder / f'{seed}.txt').read_text()
        found[seed] = work_dir, time.monotonic() - began
    return found
