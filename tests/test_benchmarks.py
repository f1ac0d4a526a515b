"""Every benchmark starts from a fresh process and says what it measures."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.tiny import tiny_config, tiny_model, uint8_batch

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


@pytest.mark.parametrize('num_local', [0, 2])
@pytest.mark.parametrize('with_cp', [False, True])
def test_the_plan_counts_the_operations_of_a_step(monkeypatch, num_local, with_cp):
    """To the last one: torch counts while a step runs."""
    monkeypatch.syspath_prepend(FOLDER)
    import scaling

    model = tiny_model(backbone=tiny_config().backbone | {'with_cp': with_cp}).train()
    inputs = model.data_preprocessor(uint8_batch(4, num_local=num_local), training=True)['inputs']
    # Otherwise attention is one operator, which torch does not count on CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = model(inputs, mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
    logits = scaling.num_logits(num_local, batch=4, num_ranks=1)
    planned = 4 * scaling.step_flops(model, num_local, global_side=16, local_side=8)
    assert counter.get_total_flops() == planned + scaling.contrast_flops(model, logits)
