"""Reason: torch lets ranks wait half an hour for one that is missing, and names nobody.

Ranks of ``--launcher pytorch`` meet in a store of their own attempt (torchrun's restarts would
find the addresses of dead ranks in the agent's), and tell each other facts in it under a
timeout: who is late is named.
"""

import functools
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, TCPStore

MEETING_SECONDS = 60
_num_exchanges: Counter[str] = Counter()


@functools.cache
def open_store() -> Store:
    """Connect to the store that ``MASTER_ADDR`` and ``MASTER_PORT`` name; once per process.

    Raises:
        ValueError: If nobody answers there within :data:`MEETING_SECONDS`.
    """
    address, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    is_agents = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    try:
        store = TCPStore(
            address,
            port,
            int(os.environ['WORLD_SIZE']),
            is_master=int(os.environ['RANK']) == 0 and not is_agents,
            timeout=timedelta(seconds=MEETING_SECONDS),
            wait_for_workers=False,  # exchange() waits, and says for whom
            multi_tenant=True,
        )
    except DistError as error:
        raise ValueError(
            f'rank {os.environ["RANK"]}: nobody answers at MASTER_ADDR={address}, port {port}, '
            f'within {MEETING_SECONDS} s ({str(error).splitlines()[0]}). Is the first machine '
            'started, the address its own, and the port open?'
        ) from error
    return PrefixStore(f'attempt-{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)


def exchange(
    topic: str, facts: Mapping[str, Any], seconds: float = MEETING_SECONDS
) -> list[dict[str, Any]]:
    """Tell all ranks something, and learn what they tell.

    Args:
        topic: What it is about. All ranks exchange the same topics equally often.
        facts: What JSON can hold.
        seconds: How long to wait for the others.

    Returns:
        list[dict]: The facts of every rank, by rank.

    Raises:
        TimeoutError: Naming the ranks that said nothing in time.
    """
    store, num_ranks = open_store(), int(os.environ['WORLD_SIZE'])
    _num_exchanges[topic] += 1
    names = [f'{topic}-{_num_exchanges[topic]}-{rank}' for rank in range(num_ranks)]
    store.set(names[int(os.environ['RANK'])], json.dumps(facts))
    deadline = time.monotonic() + seconds
    for name in names:
        left = max(deadline - time.monotonic(), 0.01)
        try:
            store.wait([name], timedelta(seconds=left))
        except DistError:
            break  # the deadline has passed
    there = {rank: store.check([name]) for rank, name in enumerate(names)}
    if not all(there.values()):
        late = ', '.join(str(rank) for rank, is_there in there.items() if not is_there)
        raise TimeoutError(
            f'{topic}: of {num_ranks} ranks {late} did not answer within {seconds:g} s. Look at '
            'what these processes printed, and at their machines.'
        )
    return [json.loads(store.get(name)) for name in names]
