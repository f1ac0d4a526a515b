"""The rank that blocks the others is logged."""

import pytest
from torch.distributed import HashStore

from mmpatchmix.engine.ranks import Watch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('mmpatchmix.engine.ranks.time.monotonic', lambda: now[0])
    return now


def run(clock, states, silent=None):
    """Write the states of four ranks every 15 s; return the messages of ranks 0 and 1."""
    store = HashStore()
    watches = [Watch(store, rank, 4, seconds=60) for rank in range(4)]
    messages = {0: [], 1: []}
    for clock[0] in range(0, 300, 15):
        for rank, watch in enumerate(watches):
            if rank == silent and clock[0] > 0:
                continue
            if message := watch.beat(states(rank, clock[0])):
                messages[rank].append((clock[0], message))
    return messages


def test_a_silent_rank_is_logged_once_by_the_first_other_rank(clock):
    messages = run(clock, lambda rank, now: (7, 'trains'), silent=2)
    assert messages[1] == [] and len(messages[0]) == 1
    seconds, message = messages[0][0]
    assert seconds <= 75 and 'rank 2 (' in message and 'does not respond' in message
    messages = run(clock, lambda rank, now: (7, 'trains'), silent=0)
    assert 'rank 0 (' in messages[1][0][1]


def test_a_rank_that_reads_data_while_others_train_is_logged_but_no_progress_or_evaluation(clock):
    assert run(clock, lambda rank, now: (now // 30, 'trains')) == {0: [], 1: []}
    assert run(clock, lambda rank, now: (7, 'evaluates')) == {0: [], 1: []}
    messages = run(clock, lambda rank, now: (7, 'reads data' if rank == 3 else 'trains'))
    message = messages[0][0][1]
    assert 'rank 3 (' in message and messages[1] == []
    assert 'reads data at iteration 8 while the others wait (trains, iteration 8)' in message
