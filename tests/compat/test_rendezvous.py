"""Ranks find each other, or learn who is missing and what differs."""

import json
import multiprocessing
import os
import socket
import time

import pytest
from mmengine.config import Config

from mmpatchmix.engine import ranks as rendezvous

TIMED_OUT_AFTER = 3


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def be_rank(queue, rank, port, lr, restart):
    """Report what a rank of two learns."""
    place = dict(RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    os.environ.update({k: str(v) for k, v in place.items()}, TORCHELASTIC_RESTART_COUNT=restart)
    from mmpatchmix.engine.ranks import compare_ranks

    cfg = Config(dict(launcher='pytorch', optim_wrapper=dict(lr=lr), work_dir=str(rank)))
    try:
        compare_ranks(cfg)
        queue.put((rank, 'agreed'))
    except (ValueError, TimeoutError) as error:
        queue.put((rank, str(error)))
    time.sleep(1)  # rank 0 holds the store


def meet(rates, attempts=('0', '0')):
    context, port = multiprocessing.get_context('fork'), free_port()
    queue = context.Queue()
    ranks = [
        context.Process(target=be_rank, args=(queue, rank, port, lr, attempts[rank]))
        for rank, lr in rates.items()
    ]
    for rank in ranks:
        rank.start()
    answers = dict(queue.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join()
    return answers


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(rendezvous.exchange, '__defaults__', (TIMED_OUT_AFTER,))
    monkeypatch.setattr(rendezvous, 'MEETING_SECONDS', TIMED_OUT_AFTER)


def test_equal_ranks_agree_whatever_their_work_dirs_are():
    assert meet({0: 0.1, 1: 0.1}) == {0: 'agreed', 1: 'agreed'}


def test_what_differs_is_named_on_both_ranks():
    for answer in meet({0: 0.1, 1: 0.2}).values():
        assert 'optim_wrapper.lr: 0.1 on rank 0 (' in answer and '; 0.2 on rank 1 (' in answer
        assert socket.gethostname() in answer and answer.count('\n') == 1


def test_a_missing_rank_is_named_in_time():
    began = time.monotonic()
    assert 'preflight: of 2 ranks 1 did not answer' in meet({0: 0.1})[0]
    assert 'rank 1: nobody answers at MASTER_ADDR=127.0.0.1' in meet({1: 0.1})[1]
    assert time.monotonic() - began < 60


def test_attempts_do_not_meet():
    """A rank of a restart must not take what a dead rank has left in the store."""
    answers = meet({0: 0.1, 1: 0.1}, attempts=('0', '1'))
    assert 'of 2 ranks 1 did not' in answers[0] and 'of 2 ranks 0 did not' in answers[1]


def test_facts_travel_whole(monkeypatch):
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv('MASTER_PORT', free_port())
    rendezvous.open_store.cache_clear()
    assert rendezvous.exchange('topic', {'old': 1}) == [{'old': 1}]
    facts = {'a': 'ü' * 5000, 'b': [1, None]}
    assert rendezvous.exchange('topic', facts) == [json.loads(json.dumps(facts))]
    rendezvous.open_store.cache_clear()
