"""The counted operations of a step and of a profile are right."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.calls import SERVER
from tests.models.tiny import tiny_config, tiny_model, uint8_batch

FOLDER = Path(__file__).parents[1] / 'benchmarks'
OPTIM_WRAPPER = dict(
    type='mmpatchmix.BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04, fused=True),
    constructor='mmpatchmix.DecayGroupsConstructor',
)
FIXED = ('preprocessor', 'losses', 'momentum encoder', 'optimizer', 'logging')


@pytest.mark.parametrize(('num_local', 'with_cp'), [(0, False), (2, True)])
def test_plan_counts_the_operations_of_a_step(monkeypatch, num_local, with_cp):
    """The formulas give exactly the number that torch counts during a step."""
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


def count_kernels(num_local=2, num_mix=2, num_layers=2, is_compiled=False):
    """Return the number of kernels of a step of a tiny model, by part."""
    sys.path.insert(0, str(FOLDER))
    import device_cost

    cfg = tiny_config()
    cfg.backbone.arch.num_layers = num_layers
    augment = dict(type='mmpatchmix.ViewAugment', blur_prob=0.5, solarize_prob=0.5)
    preprocessor = dict(
        type='mmpatchmix.PatchMixDataPreprocessor',
        patch_size=4,
        num_mix=num_mix,
        augment=dict.fromkeys(('view_1', 'view_2', 'local_views'), augment),
    )
    model = tiny_model(backbone=cfg.backbone, data_preprocessor=preprocessor).train()
    inputs = uint8_batch(32, num_local=num_local)['inputs']
    kernels = device_cost.take_step(model, OPTIM_WRAPPER, inputs, is_compiled)
    return Counter(kernel.part for kernel in kernels)


@pytest.mark.program
def test_number_of_kernels_beside_the_encoders_is_constant():
    """In M, the number of crops and the number of layers; the momentum update is one kernel."""
    changes = [{}, dict(num_mix=4), dict(num_local=4), dict(num_layers=4)]
    # In another process: the backward starts threads, after which a process cannot be forked.
    with SERVER.Pool(1) as pool:
        usual, *changed = [pool.apply(count_kernels, kwds=options) for options in changes]
    assert set(usual) == {*FIXED, 'joining views', 'heads', 'encoders'}
    assert usual['momentum encoder'] == 1
    for counts in changed:
        assert {part: counts[part] for part in FIXED} == {part: usual[part] for part in FIXED}
    assert changed[0]['encoders'] == usual['encoders'] == changed[1]['encoders']
    assert changed[2]['encoders'] > usual['encoders']


class Net:
    """Two products in marked methods and one outside."""

    def __init__(self):
        self.first, self.second, self.last = (torch.nn.Linear(3, 3, bias=False) for _ in range(3))

    def left(self, x):
        return self.first(x)

    def right(self, x):
        return self.second(self.left(x))

    def step(self):
        self.last(self.right(torch.ones(2, 3, requires_grad=True))).sum().backward()


def test_profiled_kernels_belong_to_the_part_of_their_forward(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import device_cost

    net, marks = Net(), device_cost.Marks('others')
    marks.mark(net, 'left', 'left')
    marks.mark(net, 'right', 'right')
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        net.step()
    path = tmp_path / 'trace.json'
    profiler.export_chrome_trace(str(path))
    trace = json.loads(path.read_text())['traceEvents']
    # Each product on the CPU stands for the launch of a kernel of one microsecond.
    products = [event for event in trace if event.get('name') in ('aten::mm', 'aten::addmm')]
    for number, event in enumerate(products):
        about = dict(args={'correlation': number}, tid=event['tid'], ts=event['ts'] + 0.001)
        trace.append(about | dict(cat='cuda_runtime', name='cudaLaunchKernel'))
        trace.append(about | dict(cat='kernel', name='product', tid=0, ts=0, dur=1.0))
    trace.append(dict(cat='gpu_memcpy', name='copy', args={'correlation': -1}, ts=0, dur=2.0))
    kernels = device_cost.attribute(trace, marks)
    # Forward one product; backward one for the weights and one for the input.
    owners = sorted(part for part, name, _ in kernels if name == 'product')
    assert owners == 3 * ['left'] + 3 * ['others'] + 3 * ['right']
    assert ('others', 'copy', 2.0) in kernels
