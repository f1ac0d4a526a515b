"""Start, await and kill processes, forked from a server that has imported everything."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from tests.calls import SERVER

PATIENCE = 120  # seconds; an idle machine takes a few


def start(log: Path, function: Callable, *args: Any, **env: Any) -> BaseProcess:
    """Call a function in a new process and session, with its output in a file.

    It is not a fork of this process: torch cannot train in one once autograd has started threads.
    """
    call = cloudpickle.dumps((function, args))
    process = SERVER.Process(target=_call, args=(log, call, env))
    process.start()
    return process


def _call(log: Path, call: bytes, env: dict) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, name in ((1, 'stdout'), (2, 'stderr')):  # also from pytest's own
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(number, 'w', buffering=1, closefd=False))
    os.environ.update({key: str(value) for key, value in env.items()})
    torch.set_num_threads(1)
    function, args = cloudpickle.loads(call)
    function(*args)


def finish(process: BaseProcess, seconds: float = PATIENCE) -> int:
    """Wait for a process; return its exit code, or minus the signal that killed it."""
    process.join(seconds)
    if process.exitcode is None:
        kill_session(process.pid)
        process.join()
        raise AssertionError(f'the process still ran after {seconds:g} s')
    return process.exitcode


def run_ranks(folder: Path, function: Callable, *args: Any, **env: Any) -> list[str]:
    """Call a function on two ranks that meet on loopback; return the output of each."""
    logs = [folder / f'rank-{rank}.txt' for rank in range(2)]
    env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE=2, LOCAL_RANK=0)
    ranks = [start(log, function, *args, RANK=i, **env) for i, log in enumerate(logs)]
    assert [finish(rank) for rank in ranks] == [0, 0], logs[0].read_text() + logs[1].read_text()
    return [log.read_text() for log in logs]


def read_stat(pid: int) -> list[str]:
    """Return state, parent, group, session, ... of a process; an empty list if there is none."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return []


def members(session: int) -> list[int]:
    """Return the live processes of a session."""
    pids = [int(path.name) for path in Path('/proc').glob('[0-9]*')]
    stats = {pid: read_stat(pid) for pid in pids}
    return [pid for pid, s in stats.items() if s and s[0] not in 'ZX' and int(s[3]) == session]


def kill_session(session: int) -> None:
    """Kill all processes of a session."""
    for pid in members(session):
        os.kill(pid, signal.SIGKILL)


def seconds_until(condition: Callable[[], Any], since: float, limit: float) -> float:
    """Wait for a condition; return the seconds from ``since`` until it was true."""
    while not condition():
        passed = time.monotonic() - since
        assert passed < limit, f'not within {limit:g} s'
        time.sleep(0.05)
    return time.monotonic() - since


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
