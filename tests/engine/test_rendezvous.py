"""Ranks connect to a store, compare their configs, and name missing ranks and differences."""

import multiprocessing
import os
import socket
import time

import pytest
from mmengine.config import Config

from mmpatchmix.compat import cpu_launcher
from mmpatchmix.engine import ranks
from tests.faults.processes import free_port

TIMEOUT_SECONDS = 3


def run_rank(queue, rank, port, lr, restart):
    """Put the result of ``compare_ranks`` on one rank of two into a queue."""
    place = dict(RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    os.environ.update({k: str(v) for k, v in place.items()}, TORCHELASTIC_RESTART_COUNT=restart)
    from mmpatchmix.engine.ranks import compare_ranks

    cfg = Config(dict(launcher='pytorch', optim_wrapper=dict(lr=lr), work_dir=str(rank)))
    cfg.note = 'ü' * 5000  # long and not ASCII
    try:
        compare_ranks(cfg)
        queue.put((rank, 'agreed'))
    except (ValueError, TimeoutError) as error:
        queue.put((rank, str(error)))
    time.sleep(1)  # rank 0 holds the store


def compare(rates, attempts=('0', '0')):
    context, port = multiprocessing.get_context('fork'), free_port()
    queue = context.Queue()
    processes = [
        context.Process(target=run_rank, args=(queue, rank, port, lr, attempts[rank]))
        for rank, lr in rates.items()
    ]
    for process in processes:
        process.start()
    answers = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return answers


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch):
    monkeypatch.setattr(ranks.exchange, '__defaults__', (TIMEOUT_SECONDS,))
    monkeypatch.setattr(cpu_launcher, 'MEETING_SECONDS', TIMEOUT_SECONDS)


def test_differences_are_named_on_both_ranks():
    assert compare({0: 0.1, 1: 0.1}) == {0: 'agreed', 1: 'agreed'}  # work_dirs may differ
    for answer in compare({0: 0.1, 1: 0.2}).values():
        assert 'optim_wrapper.lr: 0.1 on rank 0 (' in answer and '; 0.2 on rank 1 (' in answer
        assert socket.gethostname() in answer and answer.count('\n') == 1


def test_a_missing_rank_is_named_within_the_timeout():
    began = time.monotonic()
    assert 'preflight: of 2 ranks 1 did not answer' in compare({0: 0.1})[0]
    assert 'rank 1: no answer at MASTER_ADDR=127.0.0.1' in compare({1: 0.1})[1]
    assert time.monotonic() - began < 60


def test_attempts_have_separate_stores():
    """A rank of a restart must not read values that a dead rank has left in the store."""
    answers = compare({0: 0.1, 1: 0.1}, attempts=('0', '1'))
    assert 'of 2 ranks 1 did not' in answers[0] and 'of 2 ranks 0 did not' in answers[1]
