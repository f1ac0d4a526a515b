"""Uninterrupted runs, to compare interrupted ones with."""

import functools
import time

import pytest

from tests.faults.processes import finish, start
from tests.faults.runs import train


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
    """Return a function from a seed to the work dir, with all checkpoints, and the seconds."""
    folder = tmp_path_factory.mktemp('uninterrupted')

    @functools.cache
    def run(seed):
        work_dir, log, began = folder / f'{seed}', folder / f'{seed}.txt', time.monotonic()
        process = start(log, train, work_dir, {'randomness.seed': seed}, (), True)
        assert finish(process) == 0, log.read_text()
        return work_dir, time.monotonic() - began

    return run
