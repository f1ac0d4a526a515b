"""torchrun.sh passes signals and exit codes on and joins nodes; slurm_train.sh restarts runs."""

import os
import signal
import subprocess
import time

from tests.calls import ROOT, environment
from tests.faults.processes import free_port

TORCHRUN = ROOT / 'tools/torchrun.sh'
# In the place of a run: exit code 75 asks for a restart.
PROGRAM = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGUSR1, lambda *args: sys.exit(75))
Path(sys.argv[1]).touch()
if sys.argv[2] == 'wait':
    time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


def start(folder, what):
    (folder / 'program.py').write_text(PROGRAM)
    command = ['bash', TORCHRUN, '1', folder / 'program.py', folder / 'begun', what]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def test_usr1_to_torchrun_is_passed_on_and_asks_for_another_start(tmp_path):
    agent = start(tmp_path, 'wait')
    try:
        while not (tmp_path / 'begun').exists() and agent.poll() is None:
            time.sleep(0.1)
        agent.send_signal(signal.SIGUSR1)
        assert agent.wait(30) == 75
    finally:
        agent.kill()
        agent.wait()


def test_other_exit_codes_end_in_one_line(tmp_path):
    agent = start(tmp_path, '3')
    output = agent.communicate(timeout=60)[1]
    assert agent.returncode == 1
    assert 'rank 0 ended first, exit code 3' in output and 'Traceback' not in output


def test_two_nodes_meet(tmp_path):
    """NNODES, NODE_RANK, MASTER_ADDR and PORT, on loopback."""
    (tmp_path / 'rank.py').write_text(
        "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    )
    port = free_port()
    nodes = [
        subprocess.Popen(
            ['bash', TORCHRUN, '1', tmp_path / 'rank.py'],
            env=environment(NNODES=2, NODE_RANK=rank, MASTER_ADDR='127.0.0.1', PORT=port),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [node.communicate(timeout=120)[0] for node in nodes] == ['0 2\n', '1 2\n']


SRUN = """#!/usr/bin/env bash
echo "$*" >>{log}
[ "$(wc -l <{log})" -lt 3 ] && exit 75
exit 3
"""


def test_exit_code_75_is_started_again_with_resume(tmp_path):
    srun, log = tmp_path / 'srun', tmp_path / 'log'
    srun.write_text(SRUN.format(log=log))
    srun.chmod(0o755)
    command = ['bash', 'tools/slurm_train.sh', 'gpu', 'job', 'CONFIG', 'work', '--amp']
    env = environment(PATH=f'{tmp_path}:{os.environ["PATH"]}', SIGNAL='USR1@60')
    assert subprocess.run(command, env=env, timeout=60).returncode == 3
    calls = log.read_text().splitlines()
    assert [call.endswith('--amp --resume') for call in calls] == [False, True, True]
    assert all('--signal USR1@60' in call for call in calls)
