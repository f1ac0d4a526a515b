"""The rank that blocks the others is logged."""

import pytest
from torch.distributed import HashStore

from mmpatchmix.engine import RankWatchHook
from mmpatchmix.engine.ranks import Watch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('mmpatchmix.engine.ranks.time.monotonic', lambda: now[0])
    return now


def run(clock, states, seconds=60, until=100, silent=()):
    """Write the states of four ranks every 15 s; return the messages of ranks 0 and 1."""
    store = HashStore()
    watches = [Watch(store, rank, 4, seconds) for rank in range(4)]
    messages = {0: [], 1: []}
    for clock[0] in range(0, until, 15):
        for rank, watch in enumerate(watches):
            if rank in silent and clock[0] > 0:
                continue
            message = watch.beat(states(rank, clock[0]))
            if message:
                messages[rank].append((clock[0], message))
    return messages


def test_progress_is_not_logged(clock):
    said = run(clock, lambda rank, now: (now // 30, 'trains'), until=300)
    assert said == {0: [], 1: []}


def test_a_silent_rank_is_logged_once(clock):
    said = run(clock, lambda rank, now: (7, 'trains'), until=300, silent=[2])
    assert said[1] == [] and len(said[0]) == 1
    moment, message = said[0][0]
    assert moment <= 75 and 'rank 2 (' in message and 'does not respond' in message


def test_the_second_rank_logs_a_silent_first(clock):
    said = run(clock, lambda rank, now: (7, 'trains'), until=200, silent=[0])
    assert 'rank 0 (' in said[1][0][1]


def test_a_rank_that_reads_data_while_others_train_is_logged(clock):
    said = run(clock, lambda rank, now: (7, 'reads data' if rank == 3 else 'trains'))
    assert 'rank 3 (' in said[0][0][1]
    assert 'reads data at iteration 8 while the others wait (trains, iteration 8)' in said[0][0][1]
    assert said[1] == []


def test_a_long_evaluation_of_all_ranks_is_not_logged(clock):
    said = run(clock, lambda rank, now: (7, 'evaluates'), until=600)
    assert said == {0: [], 1: []}


def test_seconds_must_be_above_0():
    with pytest.raises(ValueError, match='seconds=0'):
        RankWatchHook(seconds=0)
