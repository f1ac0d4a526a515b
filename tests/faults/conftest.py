"""Runs that nothing interrupted, for all others to be compared with."""

import time

import pytest

from tests.faults.processes import finish, start
from tests.faults.runs import train


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
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
