"""slurm_train.sh starts a run again that asks for it, and only that."""

import os
import subprocess

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
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SIGNAL': 'USR1@60'}
    assert subprocess.run(command, env=env, timeout=60).returncode == 3
    calls = log.read_text().splitlines()
    assert [call.endswith('--amp --resume') for call in calls] == [False, True, True]
    assert all('--signal USR1@60' in call for call in calls)
