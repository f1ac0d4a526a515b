"""Whose kernels those of a profile are."""

import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from tests.docs.test_commands import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))
import device_profile

sys.path.pop(0)
PRODUCTS = ('aten::mm', 'aten::addmm')


class Net:
    """Two products by parts and one by none."""

    def __init__(self):
        self.first, self.second = (torch.nn.Linear(3, 3, bias=False) for _ in range(2))
        self.last = torch.nn.Linear(3, 3, bias=False)

    def left(self, x):
        return self.first(x)

    def right(self, x):
        return self.second(self.left(x))

    def step(self):
        self.last(self.right(torch.ones(2, 3, requires_grad=True))).sum().backward()


def pretend_gpu(trace):
    """Add a kernel of one microsecond that each product has started."""
    for number, event in enumerate([e for e in trace if e.get('name') in PRODUCTS]):
        about = dict(args={'correlation': number}, tid=event['tid'], ts=event['ts'] + 0.001)
        trace.append(about | dict(cat='cuda_runtime', name='cudaLaunchKernel'))
        trace.append(about | dict(cat='kernel', name='product', tid=0, ts=0, dur=1.0))
    trace.append(dict(cat='gpu_memcpy', name='copy', args={'correlation': -1}, ts=0, dur=2.0))


def test_a_kernel_belongs_to_the_part_that_started_it_or_whose_forward_it_answers(tmp_path):
    net, marks = Net(), device_profile.Marks('others')
    marks.mark(net, 'left', 'left')
    marks.mark(net, 'right', 'right')
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        net.step()
    path = tmp_path / 'trace.json'
    profiler.export_chrome_trace(str(path))
    trace = json.loads(path.read_text())['traceEvents']
    pretend_gpu(trace)
    kernels = device_profile.attribute(trace, marks)
    # Forward one product; backward one for the weights and one for what came in.
    owners = sorted(part for part, name, _ in kernels if name == 'product')
    assert owners == 3 * ['left'] + 3 * ['others'] + 3 * ['right']
    assert ('others', 'copy', 2.0) in kernels
