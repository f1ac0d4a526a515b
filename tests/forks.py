"""Tools as files, each in a fork of a server that has imported the stack: importing takes 8 s."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['tests.preloaded'])


def call_tool(tool, *arguments, ok=True, **env):
    """Run a file of ``tools/`` as a user would; return what it printed."""
    with tempfile.NamedTemporaryFile('r') as log:
        argv = [str(ROOT / 'tools' / tool), *map(str, arguments)]
        process = SERVER.Process(target=_run, args=(log.name, argv, env))
        process.start()
        process.join(240)
        process.kill()
        said = log.read()
    assert process.exitcode is not None and (process.exitcode == 0) == ok, said[-4000:]
    return said


def _run(log, argv, env):
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(number, 'w', buffering=1, closefd=False))
    os.environ.update({'OMP_NUM_THREADS': '1', **{k: str(v) for k, v in env.items()}})
    multiprocessing.current_process()._config.pop('daemon', None)  # it may have data workers
    multiprocessing.set_start_method(None, force=True)
    os.chdir(ROOT)
    sys.argv = argv
    runpy.run_path(argv[0], run_name='__main__')
