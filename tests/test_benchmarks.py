"""Every benchmark starts from a fresh process and says what it measures."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / 'benchmarks'
# What they import beside each other.
PARTS = {'harness', 'runs', 'data_peers', 'step_peers', 'methods_run', 'evidence_tables'}
SCRIPTS = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem not in PARTS)


@pytest.mark.parametrize('name', SCRIPTS)
def test_benchmark_explains_itself(name):
    command = [sys.executable, FOLDER / f'{name}.py', '--help']
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert 'usage:' in result.stdout
