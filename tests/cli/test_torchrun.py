"""Signals to torchrun reach the processes it started, and their exit code comes back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TORCHRUN = Path(__file__).parents[2] / 'tools/torchrun.sh'
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
    environment = {**os.environ, 'VIRTUAL_ENV': sys.prefix}
    environment['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{environment["PATH"]}'
    command = [str(part) for part in command]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


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


@pytest.mark.parametrize(('code', 'expected'), [('75', 75), ('3', 1)])
def test_the_exit_code_of_the_processes_counts(tmp_path, code, expected):
    agent = start(tmp_path, code)
    output = agent.communicate(timeout=60)[1]
    assert agent.returncode == expected
    assert ('rank 0 ended first, exit code 3' in output) == (code == '3')
    assert 'Traceback' not in output
