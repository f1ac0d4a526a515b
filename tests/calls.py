"""Run commands in new processes; the server whose forks have imported the stack."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['tests.preloaded'])


def environment(**env):
    """Return environment variables under which scripts find this interpreter; one thread each."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    ours = dict(OMP_NUM_THREADS='1', VIRTUAL_ENV=sys.prefix, PATH=path)
    return {**os.environ, **ours, **{key: str(value) for key, value in env.items()}}


def call(*command, ok=True, cwd=ROOT, **env):
    """Run a command in a folder and return its output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode == 0) == ok, done.stdout[-4000:]
    return done.stdout
