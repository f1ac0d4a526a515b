"""The rank that others wait for is named."""

import pytest
from torch.distributed import HashStore

from mmpatchmix.engine import RankWatchHook
from mmpatchmix.engine import ranks as rank_watch_hook
from mmpatchmix.engine.ranks import Watch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rank_watch_hook.time, 'monotonic', lambda: now[0])
    return now


def run(clock, states, seconds=60, until=100, silent=()):
    """Let four ranks tell their states every 15 s; return what ranks 0 and 1 had to say."""
    store = HashStore()
    watches = [Watch(store, rank, 4, seconds) for rank in range(4)]
    said = {0: [], 1: []}
    for clock[0] in range(0, until, 15):
        for rank, watch in enumerate(watches):
            if rank in silent and clock[0] > 0:
                continue
            message = watch.beat(states(rank, clock[0]))
            if message:
                said[rank].append((clock[0], message))
    return said


def test_a_run_that_goes_on_is_left_alone(clock):
    said = run(clock, lambda rank, now: (now // 30, 'trains'), until=300)
    assert said == {0: [], 1: []}


def test_a_silent_rank_is_named_once(clock):
    said = run(clock, lambda rank, now: (7, 'trains'), until=300, silent=[2])
    assert said[1] == [] and len(said[0]) == 1
    moment, message = said[0][0]
    assert moment <= 75 and 'rank 2 (' in message and 'no sign of life' in message


def test_the_second_rank_speaks_for_a_silent_first(clock):
    said = run(clock, lambda rank, now: (7, 'trains'), until=200, silent=[0])
    assert 'rank 0 (' in said[1][0][1]


def test_a_rank_that_reads_data_while_others_train_is_named(clock):
    said = run(clock, lambda rank, now: (7, 'reads data' if rank == 3 else 'trains'))
    assert 'rank 3 (' in said[0][0][1]
    assert 'reads data at iteration 8 while the others wait (trains, iteration 8)' in said[0][0][1]
    assert said[1] == []


def test_all_of_them_may_evaluate_for_long(clock):
    said = run(clock, lambda rank, now: (7, 'evaluates'), until=600)
    assert said == {0: [], 1: []}


def test_the_time_is_above_0():
    with pytest.raises(ValueError, match='seconds=0'):
        RankWatchHook(seconds=0)
