"""Run commands in new processes; the server whose forks have imported the stack."""

import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['tests.preloaded'])


def fork_server():
    """Fork the server from this process, before it has threads, which saves its imports."""

    def fork(path, arguments, descriptors):
        if pid := os.fork():
            return pid
        for number in map(int, os.listdir('/proc/self/fd')):
            if number > 2 and number not in descriptors:
                with suppress(OSError):
                    os.close(number)
        forkserver._forkserver._lock = threading.Lock()
        try:
            exec(arguments[-1])
        finally:
            os._exit(0)

    resource_tracker.ensure_running()
    with mock.patch.object(util, 'spawnv_passfds', fork):
        forkserver.ensure_running()


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
