"""torchrun after a killed rank, and after a cut link between two machines."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.calls import ROOT, environment
from tests.engine.tiny_run import tiny_run_config
from tests.faults import SOAK
from tests.faults.processes import PATIENCE, seconds_until

pytestmark = pytest.mark.skipif(not SOAK, reason='takes minutes: make soak')

TIMEOUT = 20  # seconds, of collectives
LIMIT = 120  # seconds until torchrun must have ended
PORT = '29511'


@pytest.fixture
def config(tmp_path):
    """A run without end."""
    cfg = tiny_run_config(tmp_path / 'run', epochs=2000)
    cfg.train_cfg.val_interval = 5000
    cfg.env_cfg.dist_cfg.timeout = TIMEOUT
    cfg.default_hooks.checkpoint.interval = 50
    cfg.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py'


@pytest.fixture
def launch(config, tmp_path):
    """Start tools/dist_train.sh in a new session, killed at the end of the test."""
    nodes = []

    def start(num_ranks, *before, **env):
        command = [*before, 'bash', 'tools/dist_train.sh', str(config), str(num_ranks)]
        log = tmp_path / f'node-{len(nodes)}.txt'
        with open(log, 'w') as file:
            streams = dict(stdout=file, stderr=subprocess.STDOUT)
            options = dict(env=environment(**env), start_new_session=True)
            node = subprocess.Popen(command, cwd=ROOT, **options, **streams)
        nodes.append(node)
        return node, log

    yield start
    for pid in processes_of(config):
        os.kill(pid, signal.SIGKILL)
    for node in nodes:
        node.wait()


def wait_for_training(log):
    seconds_until(lambda: 'Epoch 3/' in log.read_text(), time.monotonic(), 3 * PATIENCE)


def processes_of(config):
    """Return the processes of a config; torchrun starts each in its own session."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):
            if str(config) in path.read_text():
                found.append(int(path.parent.name))
    return found


def find_rank(config, rank):
    """Return the process of a rank."""
    environments = {pid: Path(f'/proc/{pid}/environ').read_text() for pid in processes_of(config)}
    return next(pid for pid, text in environments.items() if f'\0LOCAL_RANK={rank}\0' in text)


def test_a_killed_rank_ends_torchrun_and_all_its_processes(config, launch, record_property):
    node, log = launch(2)
    wait_for_training(log)
    os.kill(find_rank(config, 1), signal.SIGKILL)
    killed = time.monotonic()
    seconds = seconds_until(lambda: node.poll() is not None, killed, LIMIT)
    assert node.returncode != 0
    seconds_until(lambda: not processes_of(config), time.monotonic(), 5)
    record_property('seconds', round(seconds, 1))


def ip(*arguments, check=True):
    return subprocess.run(['ip', *arguments], check=check, capture_output=True, text=True)


@pytest.fixture
def two_machines():
    """Two network namespaces with a cable between them, as (name, device, address)."""
    if shutil.which('ip') is None:
        pytest.skip('there is no ip (iproute2) on this system')
    ends = [(f'pm{os.getpid()}-{i}', f'pm{os.getpid()}v{i}', f'10.213.7.{i + 1}') for i in (0, 1)]
    try:
        for name, _, _ in ends:
            result = ip('netns', 'add', name, check=False)
            if result.returncode:
                pytest.skip(f'network namespaces are not permitted here: {result.stderr.strip()}')
        (first, cable, _), (second, other, _) = ends
        peer = ('peer', 'name', other, 'netns', second)
        ip('link', 'add', cable, 'netns', first, 'type', 'veth', *peer)
        for name, device, address in ends:
            ip('-n', name, 'address', 'add', f'{address}/24', 'dev', device)
            for each in ('lo', device):
                ip('-n', name, 'link', 'set', each, 'up')
        yield ends
    finally:
        for name, _, _ in ends:
            ip('netns', 'del', name, check=False)


def test_a_cut_link_ends_both_machines(two_machines, config, launch, record_property):
    nodes = []
    for rank, (name, _, _) in enumerate(two_machines):
        env = dict(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR=two_machines[0][2], PORT=PORT)
        nodes.append(launch(1, 'ip', 'netns', 'exec', name, **env))
    wait_for_training(nodes[0][1])
    name, device, _ = two_machines[0]
    ip('-n', name, 'link', 'set', device, 'down')
    cut = time.monotonic()
    seconds = [seconds_until(lambda n=node: n.poll() is not None, cut, LIMIT) for node, _ in nodes]
    record_property('seconds', round(max(seconds), 1))
    assert all(node.returncode != 0 for node, _ in nodes)
    assert not processes_of(config)
