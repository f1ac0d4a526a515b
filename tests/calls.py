"""Run commands in new processes; verbs in forks of a server that has imported the stack."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
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


def plain_text(cfg):
    """Write a config as Python. A Runner formats it seven times, with yapf 0.3 s each."""
    return ''.join(f'{key} = {value!r}\n' for key, value in cfg.to_dict().items())


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


def call_tool(verb, *arguments, ok=True, **env):
    """Run a verb, ``'train'`` or ``'train.py'``, without 8 s of imports; return its output."""
    with tempfile.NamedTemporaryFile('r') as log:
        argv = [verb.removesuffix('.py').replace('_', '-'), *map(str, arguments)]
        process = SERVER.Process(target=_run, args=(log.name, argv, environment(**env)))
        process.start()
        process.join(TIMEOUT)
        is_late = process.exitcode is None
        process.kill()
        output = log.read()
    assert not is_late and (process.exitcode == 0) == ok, output[-4000:]
    return output


def _run(log, argv, env):
    from mmpatchmix.cli.main import main

    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(number, 'w', buffering=1, closefd=False))
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # as in a process of its own
    tempfile.tempdir = None  # TMPDIR may be another one
    os.chdir(ROOT)
    sys.argv = [f'{ROOT}/tools/{argv[0]}.py', *argv[1:]]
    sys.exit(main(argv))
