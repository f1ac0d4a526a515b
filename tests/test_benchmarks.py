"""Every benchmark starts and says what it measures."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.tiny import tiny_config, tiny_model, uint8_batch

FOLDER = Path(__file__).parents[1] / 'benchmarks'
# What they import beside each other.
PARTS = {'harness', 'runs', 'data_peers', 'step_peers', 'methods_run', 'evidence_tables', 'paper'}
SCRIPTS = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem not in PARTS)


# One process imports what they need, which takes seconds; each script runs in a fork of it.
EACH_IN_A_FORK = """
import os, runpy, sys
import torch, mmpatchmix.registry, mmpretrain.models
paths = sys.argv[1:]
sys.path.insert(0, os.path.dirname(paths[0]))
for path in paths:
    runpy.run_path(path)  # what it imports
for path in paths:
    child = os.fork()
    if child == 0:
        sys.argv = [path, '--help']
        code = 1
        try:
            runpy.run_path(path, run_name='__main__')
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        os._exit(code)  # spares the end of an interpreter with all that is imported
    print(path, 'ended with', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_benchmarks_explain_themselves():
    paths = [str(FOLDER / f'{name}.py') for name in SCRIPTS]
    command = [sys.executable, '-u', '-c', EACH_IN_A_FORK, *paths]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert len(paths) > 10
    for path in paths:
        assert f'{path} ended with 0' in result.stdout, result.stderr
        assert f'usage: {Path(path).name}' in result.stdout


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


def test_the_parts_of_a_step_are_a_step(monkeypatch):
    """Weights after it are those that the model's own step gives."""
    monkeypatch.syspath_prepend(FOLDER)
    import step
    import step_parts

    def take(function):
        ours = step.OurStep.__new__(step.OurStep)
        ours.model = tiny_model().train()
        trained = [p for p in ours.model.parameters() if p.requires_grad]
        ours.optimizer = OptimWrapper(torch.optim.SGD(trained, lr=0.1))
        torch.manual_seed(1)
        inputs = step.prepare(ours.model, uint8_batch(4))
        function(ours, inputs, nullcontext)
        return ours.model.state_dict()

    clock = step_parts.Clock()
    found = take(lambda *given: step_parts.take_step(*given, clock))
    for name, weight in take(step.OurStep.step).items():
        torch.testing.assert_close(found[name], weight, msg=name)
    assert list(clock.seconds)[-2:] == ['AdamW', 'freeing gradients']
