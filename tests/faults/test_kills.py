"""A run that is killed by SIGKILL at any point and resumed equals an uninterrupted one."""

import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from tests.faults import SOAK
from tests.faults.kills import GROUPS, OUTSIDE, draw_kill
from tests.faults.processes import finish, members, seconds_until, start
from tests.faults.runs import (
    ITERS,
    WORKERS,
    choose_workers,
    differences,
    iteration_of,
    numbers,
    train,
)

# torch's data workers check every 5 s whether their parent is alive.
ORPHAN_SECONDS = 10


def saved_iteration(work_dir):
    """Check that the checkpoint reported as saved exists undamaged; return its iteration."""
    good, damaged = find_good_checkpoint(work_dir)
    assert not damaged  # a partial file does not have the name of a checkpoint
    reported = numbers(work_dir / 'saved.txt')
    iteration = 0 if good is None else iteration_of(good)
    assert iteration >= max(reported, default=0)
    return iteration


@pytest.mark.parametrize('number', range(SOAK or 3))
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    number, uninterrupted, tmp_path, record_property
):
    draw = random.Random(number)
    seed = (0, None)[number % 2]
    expected, seconds = uninterrupted(seed)
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    if seed is None:  # a new start would draw another seed
        shutil.copy(expected / 'iter_2.pth', work_dir)
    deaths, code = {}, None
    while code != 0:
        begun = saved_iteration(work_dir)
        kill = None
        if begun < ITERS and (not deaths or draw.random() < 0.5):
            group = draw.randrange(len(GROUPS)) if deaths else number % len(GROUPS)
            kill = draw_kill(draw, group, begun)
        options = {'randomness.seed': seed, **choose_workers(*draw.choice(WORKERS))}
        hooks = kill.arm() if kill else ()
        process = start(tmp_path / 'log.txt', train, work_dir, options, hooks)
        if kill and kill.kind == OUTSIDE:
            time.sleep(kill.share * seconds)
            with suppress(ProcessLookupError):  # the run may have ended by then
                os.kill(process.pid, signal.SIGKILL)
        code = finish(process)
        if code == -signal.SIGKILL:
            deaths[process.pid] = time.monotonic()
            record_property('trial', f'killed {kill.kind}')
        else:
            missed = kill is not None and kill.kind != OUTSIDE
            assert code == 0 and not missed, (tmp_path / 'log.txt').read_text()[-3000:]
    assert deaths
    assert differences(work_dir, expected) == []
    for session, died in deaths.items():
        lived_on = seconds_until(lambda s=session: not members(s), died, ORPHAN_SECONDS)
        record_property('seconds', round(lived_on, 1))
