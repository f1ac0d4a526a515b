"""What a step really costs this GPU, part by part, beside what is counted and modelled on paper.

    python benchmarks/device_profile.py --crops 10
    python benchmarks/device_profile.py --model vit-b --crops 2
    python benchmarks/device_profile.py --top 40       # and which kernels take longest

torch's profiler records one step of an ImageNet recipe, from the workers' uint8 crops, under
bfloat16 autocast, after three that are not. A kernel belongs to the part of the step that started
it; one of the backward to the part whose forward it answers. "counted" and "modelled" are those of
`device_cost.py` for this kind of GPU, small kernels among them, with colours compiled.

The kernels' times add up to what the GPU worked. The step takes longer where the GPU waits for the
host: "host" is how long the host took to start all kernels.
"""

import bisect
import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from device_cost import DEVICES, PARTS, count_step, find_parts, model_seconds
from harness import measure, parse_args, report
from mmengine.logging import MMLogger
from paper import Parts
from step import OurStep, workers_batch
from torch.profiler import ProfilerActivity, profile, record_function

from mmpatchmix.models.augment import fused_colours

ON_DEVICE = ('kernel', 'gpu_memcpy', 'gpu_memset')
LAUNCHES = ('cuda_runtime', 'cuda_driver')
BACKWARD = 'autograd::engine::evaluate_function: '
MARK = 'part: '


class Span(NamedTuple):
    """When something ran on a thread of the host, in microseconds, and what it was."""

    start: float
    end: float
    what: object


class Marks(Parts):
    """Note in the profile, too, which part runs."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Say which part what runs inside belongs to, and its backward."""
        with super().part(name), record_function(MARK + name):
            yield


def attribute(trace: list[dict], marks: Marks) -> list[tuple[str, str, float]]:
    """Find the part of each kernel of a profile.

    Args:
        trace: ``traceEvents`` of what the profiler exports.
        marks: Those that were set while it ran.

    Returns:
        list: Part, name and microseconds of each kernel.
    """
    spans: dict[object, list[Span]] = {}
    launches = {}
    for event in trace:
        name, about = event.get('name', ''), event.get('args', {})
        if event.get('cat') in LAUNCHES:
            launches[about.get('correlation')] = event['tid'], event['ts']
        elif event.get('cat') == 'user_annotation' and name.startswith(MARK):
            what = name.removeprefix(MARK)
            spans.setdefault(event['tid'], []).append(make_span(event, what))
        elif name.startswith(BACKWARD):
            # Sums of gradients have no number; they follow what made the gradient.
            number = about.get('Sequence number') if 'AccumulateGrad' not in name else None
            what = None if number is None else marks.part_of(number)
            spans.setdefault(event['tid'], []).append(make_span(event, what))
    for thread in spans.values():
        thread.sort()
        for i, span in enumerate(thread):
            if span.what is None:
                before = thread[i - 1].what if i else marks.default
                thread[i] = span._replace(what=before)
    kernels = []
    for event in trace:
        if event.get('cat') in ON_DEVICE:
            thread, when = launches.get(event['args'].get('correlation'), (None, 0))
            part = find_innermost(spans.get(thread, []), when) or marks.default
            kernels.append((part, event['name'], event['dur']))
    return kernels


def make_span(event: dict, what: object) -> Span:
    return Span(event['ts'], event['ts'] + event['dur'], what)


def find_innermost(spans: list[Span], when: float) -> object:
    """Return what the last of the spans is, by start, that holds a moment; None if none does."""
    last = bisect.bisect_right(spans, when, key=lambda span: span.start)
    return next((span.what for span in reversed(spans[:last]) if span.end >= when), None)


def record(step: OurStep, take) -> list[tuple[str, str, float]]:
    """Profile one step and return part, name and microseconds of its kernels."""
    marks = Marks('joining views')
    for owner, method, part in find_parts(step):
        marks.mark(owner, method, part)
    take()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        take()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(path))
        return attribute(json.loads(path.read_text())['traceEvents'], marks)


def main() -> None:
    args = parse_args(__doc__, batch=128, crops=10, model='vit-s', launch=5.0, top=0)
    if not torch.cuda.is_available():
        sys.exit(f'There is no GPU that torch {torch.__version__} can use: nothing to profile.')
    MMLogger.get_instance('benchmark', log_level='WARNING')
    torch.manual_seed(0)
    with torch.device('cuda'):
        step = OurStep(model=args.model)
    batch = workers_batch(args.batch, args.crops - 2)  # on the host, as loaders hand it over
    batch['inputs'] = {name: views.pin_memory() for name, views in batch['inputs'].items()}
    host_seconds = []

    def take() -> None:
        began = time.perf_counter()
        step.step_from_workers(batch, lambda: torch.autocast('cuda', dtype=torch.bfloat16))
        host_seconds.append(time.perf_counter() - began)

    whole = measure({'step': take}, args.repeats, warmup=3)['step']
    host = statistics.median(host_seconds[3:])
    kernels = record(step, take)
    is_compiled = fused_colours._works
    rows = tabulate(kernels, args, is_compiled)
    rows += [{'part': 'step, by the clock', **dict.fromkeys(list(rows[0])[1:])}]
    rows[-1]['measured (ms)'] = 1000 * whole
    if args.top:
        report('kernels', list_longest(kernels, args.top))
    settings = dict(batch=args.batch, crops=args.crops, model=args.model, repeats=args.repeats)
    settings |= {'host (ms)': round(1000 * host, 2), 'colours compiled': is_compiled}
    report('a step on this GPU', rows, **settings)


def tabulate(kernels: list[tuple[str, str, float]], args, is_compiled: bool) -> list[dict]:
    """Lay out counted, modelled and measured of each part, and their sums."""
    on_paper = count_step(args.model, args.crops, args.batch, is_compiled)
    kind = next((kind for kind in DEVICES if kind in torch.cuda.get_device_name()), None)
    modelled = model_seconds(on_paper, kind, args.launch / 1e6) if kind else {}
    counted = Counter(kernel.part for kernel in on_paper)
    found = Counter(part for part, _, _ in kernels)
    rows = []
    for part in PARTS:
        if part == 'logging':  # once in 50 steps
            continue
        rows.append(
            {
                'part': part,
                'kernels counted': counted[part],
                'kernels run': found[part],
                'modelled (ms)': 1000 * modelled[part] if modelled else None,
                'measured (ms)': sum(us for owner, _, us in kernels if owner == part) / 1000,
            }
        )
    total = {name: sum(row[name] or 0 for row in rows) for name in list(rows[0])[1:]}
    return [*rows, {'part': 'all kernels', **total}]


def list_longest(kernels: list[tuple[str, str, float]], top: int) -> list[dict]:
    """Sum kernels by part and name, the longest first."""
    times = defaultdict(list)
    for part, name, us in kernels:
        times[part, name].append(us)
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:top]
    return [
        {'part': part, 'kernel': name[:90], 'times': len(each), 'ms': sum(each) / 1000}
        for (part, name), each in longest
    ]


if __name__ == '__main__':
    main()
