"""Ranks over gloo: resumed on another number, with signals, stopped, killed."""

import os
import shutil
import signal
import socket
import time

import pytest
import torch

from mmpatchmix.engine.stop_requests import RankAgreement
from tests.faults import processes
from tests.faults.processes import finish, members, seconds_until, start
from tests.faults.runs import (
    BATCH,
    ITERS,
    append,
    at,
    choose_workers,
    differences,
    numbers,
    read_log,
    train,
)

TIMEOUT = 5  # seconds, of collectives, if a rank is stopped
LIMIT = 4 * TIMEOUT  # on a busy machine


def send(number):
    """Return a function that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def start_ranks(folder, num_ranks, hooks=None, keep=False, **options):
    """Start ranks with the total batch size of one process; ``hooks`` are by rank."""
    port = processes.free_port()
    options = {'launcher': 'pytorch', 'batch_size': BATCH // num_ranks, **options}
    ranks = []
    for rank in range(num_ranks):
        log = folder.with_name(f'{folder.name}-{rank}.txt')
        arguments = (folder, options, (hooks or {}).get(rank, ()), keep)
        place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=num_ranks, MASTER_PORT=port)
        ranks.append(start(log, train, *arguments, MASTER_ADDR='127.0.0.1', **place))
    return ranks


def finish_ranks(folder, ranks, code):
    codes = [finish(process) for process in ranks]
    logs = [path.read_text()[-2000:] for path in folder.parent.glob(f'{folder.name}-?.txt')]
    assert codes == [code] * len(codes), logs


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    """A run of two ranks with all its checkpoints."""
    folder = tmp_path_factory.mktemp('ranks') / 'whole'
    finish_ranks(folder, start_ranks(folder, 2, keep=True), 0)
    return folder


def test_two_ranks_stop_after_a_signal_to_one_and_resume_bit_for_bit(two_ranks, tmp_path):
    folder = tmp_path / 'run'
    eager = at('before_train_iter', 0, lambda: setattr(RankAgreement, 'seconds', 0))
    hooks = {0: (eager,), 1: (eager, at('before_train_iter', 6, send(signal.SIGUSR1)))}
    finish_ranks(folder, start_ranks(folder, 2, hooks), 75)
    assert 'Stopped by SIGUSR1 after iteration 7 of 15' in read_log(folder)
    assert numbers(folder / 'saved.txt')[-1] == 7
    finish_ranks(folder, start_ranks(folder, 2), 0)
    assert differences(folder, two_ranks) == []


def test_resuming_on_2_and_4_ranks_keeps_samples_and_schedules(uninterrupted, tmp_path):
    whole, _ = uninterrupted(0)
    folder, order = tmp_path / 'run', []
    folder.mkdir()
    shutil.copy(whole / 'iter_6.pth', folder)
    stop = at('before_train_iter', 8, send(signal.SIGUSR1))
    for num_ranks, hooks, code in ((2, {1: (stop,)}, 75), (4, {}, 0)):
        finish_ranks(folder, start_ranks(folder, num_ranks, hooks), code)
        reads = [folder / f'read-{rank}.txt' for rank in range(num_ranks)]
        rows = zip(*map(numbers, reads), strict=True)
        order += [index for row in rows for index in row]
        for path in reads:
            path.unlink()
    assert len(order) == (ITERS - 6) * BATCH
    assert order == numbers(whole / 'read-0.txt')[6 * BATCH :]
    found, expected = (
        torch.load(path / 'epoch_3.pth', weights_only=True)['message_hub']['log_scalars']
        for path in (folder, whole)
    )
    for name in ('train/lr', 'train/momentum'):
        assert len(expected[name]['values']) == ITERS
        assert torch.equal(found[name]['values'], expected[name]['values']), name
    assert 'Resumed on 4 ranks instead of 2' in read_log(folder)


@pytest.mark.parametrize('receiver', ['the process', 'its session'])
def test_sigterm_ends_data_workers_after_the_iteration(
    receiver, uninterrupted, tmp_path, record_property
):
    def send_to_all():
        for pid in members(os.getsid(0)):
            os.kill(pid, signal.SIGTERM)

    function = send(signal.SIGTERM) if receiver == 'the process' else send_to_all
    folder, log, count = tmp_path / 'run', tmp_path / 'log.txt', tmp_path / 'count.txt'
    count_processes = lambda: append(count, len(members(os.getsid(0))))  # noqa: E731
    hooks = at('before_train_iter', 6, count_processes), at('before_train_iter', 6, function)
    process = start(log, train, folder, choose_workers(2, True), hooks)
    assert finish(process) == 75, log.read_text()[-3000:]
    ended = time.monotonic()
    record_property('seconds', seconds_until(lambda: not members(process.pid), ended, 2))
    assert numbers(count) == [3]
    assert numbers(folder / 'saved.txt')[-1] == 7
    if receiver == 'its session':
        assert finish(start(log, train, folder, choose_workers(2, True))) == 0
        assert differences(folder, uninterrupted(0)[0]) == []


FAULTS = [('before_train_iter', signal.SIGSTOP), ('before_train_iter', signal.SIGKILL)]
FAULTS += [('after_train_iter', signal.SIGSTOP)]  # in the exchange of stop requests


@pytest.mark.parametrize(('point', 'number'), FAULTS)
def test_a_stopped_or_killed_rank_ends_the_other(point, number, tmp_path, record_property):
    folder = tmp_path / 'run'
    hooks = {1: (at(point, 6, send(number)),)}
    options = {
        'env_cfg.dist_cfg.timeout': TIMEOUT,
        'default_hooks.rank_watch.seconds': TIMEOUT / 3,
        'default_hooks.logger.interval': 50,
    }
    first, second = start_ranks(folder, 2, hooks, **options)
    try:
        lost = lambda: (processes.read_stat(second.pid) or 'X')[0] in 'TZX'  # noqa: E731
        seconds_until(lost, time.monotonic(), 60)
        began = time.monotonic()
        seconds = seconds_until(lambda: first.exitcode is not None, began, LIMIT)
        record_property('seconds', round(seconds, 1))
    finally:
        for process in (first, second):
            processes.kill_session(process.pid)
            process.join()
    assert first.exitcode != 0
    assert numbers(folder / 'saved.txt')[-1] == 6
    if number == signal.SIGSTOP:  # a killed rank closes its connections
        name = f'rank 1 ({socket.gethostname()}, process {second.pid})'
        assert f'{name} does not respond' in read_log(folder)
