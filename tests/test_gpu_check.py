"""The check of a GPU, on a machine that need not have one."""

import subprocess
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
from runs import read_results

sys.path.pop(0)
GPU = SimpleNamespace(total_memory=80 * 2**30)


@pytest.mark.parametrize('part', gpu_check.plan(8, Path()))
def test_every_command_is_one_that_is_taken(part, monkeypatch):
    _, command = gpu_check.plan(8, Path('scratch'))[part]
    command = list(map(str, command))
    if command[0] == '-m':
        module, option, marker, *files = command[1:]
        assert (module, option) == ('pytest', '-m')
        assert files and all((ROOT / file).is_file() for file in files)
        assert f'markers = ["{marker}: ' in (ROOT / 'pyproject.toml').read_text()
    elif command[0].startswith('benchmarks/'):
        check_script(command[0], command[1:], monkeypatch)
    else:
        check_arguments(to_arguments(['python', *command]))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Pretend that there is a GPU, with parts of a second."""
    figures = 'print(\'{"rows": [{"step": "ours", "s": 0.5, "of our floor": 1.04}]}\')'
    parts = {
        'good': (20, ['-c', figures]),
        'bad': (20, ['-c', 'import sys; sys.exit("out of memory")']),
        'slow': (0.5, ['-c', 'import time; time.sleep(60)']),
        'tests': (20, ['-c', 'print("....\\n7 passed in 2 s")']),
    }
    monkeypatch.setattr(gpu_check, 'plan', lambda batch, scratch, **_: parts)
    monkeypatch.setattr(gpu_check, 'RESULTS', tmp_path / 'gpu.jsonl')
    monkeypatch.setattr(gpu_check, 'LOGS', tmp_path / 'logs')
    monkeypatch.setattr(gpu_check, 'describe_code', lambda: 'abc')
    monkeypatch.setattr('runs.describe_code', lambda: 'abc')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: GPU)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'none')  # as the machine has it
    return parts


def check(results, **changes):
    settings = dict(parts=list(results), again=False, minutes=8) | changes
    gpu_check.check(Namespace(**settings))
    return read_results(gpu_check.RESULTS)


def test_a_part_that_fails_ends_nothing_and_what_is_done_stays(results, capsys):
    lines = {line['part']: line for line in check(results)}
    assert lines['bad']['error'] == 'exit code 1: out of memory'
    assert lines['slow']['error'] == 'it took more than 0 s'
    assert lines['tests']['said'] == '7 passed in 2 s'
    table = gpu_check.RESULTS.with_suffix('.txt').read_text()
    assert 's 0.5, of our floor 1.04' in table and '7 passed' in table
    assert 'bad' not in table
    results['bad'] = (20, ['-c', 'print("1 passed")'])
    again = [line['part'] for line in check(results)]
    assert again == ['tests', 'good', 'bad', 'slow', 'bad', 'slow']
    assert '1 passed' in gpu_check.RESULTS.with_suffix('.txt').read_text()
    assert len(check(results, parts=['good'], again=True)) == 7


def test_what_a_part_has_started_ends_with_it(results, tmp_path):
    pid = tmp_path / 'pid'
    child = 'import time; time.sleep(60)'
    code = (
        'import pathlib, subprocess, sys, time\n'
        f'child = subprocess.Popen([sys.executable, "-c", {child!r}])\n'
        f'pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n'
        'time.sleep(60)'
    )
    results['slow'] = (5, ['-c', code])
    check(results, parts=['slow'])
    number = int(pid.read_text())
    seconds_until(lambda: (read_stat(number) or 'X')[0] in 'ZX', time.monotonic(), 10)


def test_documents_and_results_are_no_code(tmp_path, monkeypatch):
    """Or the table that is written would make all parts be run again."""
    (tmp_path / 'benchmarks/results').mkdir(parents=True)
    (tmp_path / 'docs').mkdir()
    names = ('benchmarks/results/gpu.txt', 'docs/performance.md', 'README.md', 'code.py')
    git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path))
    for name in names:
        (tmp_path / name).touch()
    for command in (('init', '-q'), ('add', '.'), ('commit', '-qm', 'all')):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(runs, 'HERE', tmp_path / 'benchmarks')
    clean = runs.describe_code()
    assert len(clean) == 12
    for name in names[:3]:
        (tmp_path / name).write_text('more')
    assert runs.describe_code() == clean
    (tmp_path / 'code.py').write_text('more')
    assert runs.describe_code() == f'{clean}-dirty'
    monkeypatch.setattr(runs.shutil, 'which', lambda name: None)
    monkeypatch.setenv('GIT_COMMIT', '0123456789abcdef')
    assert runs.describe_code() == '0123456789ab'  # without git


def test_parts_for_which_no_time_is_left_are_named(results, capsys):
    assert {line['part'] for line in check(results, minutes=1 / 60)} == {'tests', 'slow'}
    assert 'No time was left for good, bad: give the command again' in capsys.readouterr().out


def test_the_quick_check_says_what_fails_and_keeps_no_figure(results, capsys):
    assert gpu_check.check_quickly(['good', 'bad', 'tests']) == 1
    printed = capsys.readouterr().out
    assert 'bad: exit code 1: out of memory' in printed and 'good: done' in printed
    assert 'out of memory' in (gpu_check.LOGS / 'bad.err').read_text()
    assert not gpu_check.RESULTS.exists()


def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py'])
    gpu_check.main()
    assert 'There is no GPU that torch' in capsys.readouterr().out
