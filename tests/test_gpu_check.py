"""The GPU check, on a machine that need not have a GPU."""

import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.docs.test_commands import ROOT, check_arguments, check_script, to_arguments
from tests.faults.processes import read_stat, seconds_until

sys.path.insert(0, str(ROOT / 'benchmarks'))
import gpu_check
import runs

sys.path.pop(0)
GPU = SimpleNamespace(total_memory=80 * 2**30)


def test_every_command_is_valid():
    for _, command in gpu_check.plan(8, Path('scratch')).values():
        if command[:2] == ['-m', 'pytest']:
            assert len(command) > 4 and all((ROOT / file).is_file() for file in command[4:])
        elif command[0].startswith('benchmarks/'):
            with pytest.MonkeyPatch.context() as patch:
                check_script(command[0], command[1:], patch)
        else:
            check_arguments(to_arguments(['python', *command]))


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run the check with parts of a second as if there were a GPU; return the lines of results."""
    pid = tmp_path / 'pid'
    child = f'{sys.executable} -c "import time; time.sleep(60)"'
    figures = '{"rows": [{"step": "ours", "s": 0.5, "of our floor": 1.04}]}'
    parts = {
        'good': (20, ['-c', f'print({figures!r})']),
        'bad': (20, ['-c', 'import sys; sys.exit("out of memory")']),
        'slow': (4, ['-c', f'import os; os.system({f"{child} & echo $! > {pid}; wait"!r})']),
        'tests': (20, ['-c', 'print("....\\n7 passed in 2 s")']),
    }
    monkeypatch.setattr(gpu_check, 'plan', lambda batch, scratch, **_: parts)
    monkeypatch.setattr(gpu_check, 'RESULTS', tmp_path / 'gpu.jsonl')
    monkeypatch.setattr(gpu_check, 'LOGS', tmp_path / 'logs')
    monkeypatch.setattr(gpu_check, 'describe_code', lambda: 'abc')
    monkeypatch.setattr(runs, 'describe_code', lambda: 'abc')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: GPU)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'none')  # as the machine has it

    def run(**changes):
        gpu_check.check(Namespace(**dict(parts=list(parts), again=False, minutes=8) | changes))
        return runs.read_results(gpu_check.RESULTS)

    run.plan, run.pid = parts, pid
    return run


def test_failed_parts_do_not_stop_others_and_done_parts_are_kept(check, capsys):
    assert {line['part'] for line in check(minutes=1 / 60)} == {'tests'}
    assert 'No time was left for good, bad, slow: repeat' in capsys.readouterr().out
    lines = {line['part']: line for line in check()}
    assert lines['bad']['error'] == 'exit code 1: out of memory'
    assert lines['slow']['error'] == 'it took more than 4 s'
    table = gpu_check.RESULTS.with_suffix('.txt').read_text()
    assert 's 0.5, of our floor 1.04' in table and '7 passed' in table and 'bad' not in table
    # The child process of the part that was stopped has ended, too.
    pid = int(check.pid.read_text())
    seconds_until(lambda: (read_stat(pid) or 'X')[0] in 'ZX', time.monotonic(), 10)
    check.plan['bad'] = check.plan['slow'] = (20, ['-c', 'print("1 passed")'])
    assert [line['part'] for line in check()[4:]] == ['bad', 'slow']


def test_without_a_gpu_it_ends_with_success(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py'])
    gpu_check.main()
    assert 'There is no GPU that torch' in capsys.readouterr().out
