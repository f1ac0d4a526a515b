"""Kernels, bytes and time of a training step on an accelerator: counted, modelled and profiled.

    python benchmarks/device_cost.py                                  # kernels and bytes by part
    python benchmarks/device_cost.py --table modelled                 # the time that follows
    python benchmarks/device_cost.py --table compiled                 # kernels of compiled colours
    python benchmarks/device_cost.py --table profile --crops 10       # on a GPU, beside the others

A step of the ImageNet recipes runs on tensors without data, under bfloat16 autocast; every
operation that is not a view is one kernel. docs/performance.md explains the tables.
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from harness import CONFIGS, DEVICE, make_rows, measure, parse_args, report, set_up
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from paper import Kernel, Paper, Parts, use_compiled_colours
from step import OurStep, make_batch
from torch._inductor import metrics
from torch.profiler import ProfilerActivity, profile, record_function

from mmpatchmix.engine.loss_log_hook import stack_numbers
from mmpatchmix.models import PatchMix
from mmpatchmix.models.augment import colours
from mmpatchmix.models.augment.view_augment import ViewAugment
from mmpatchmix.registry import MODELS as REGISTRY

# (bytes/s, operations/s in bfloat16) of data sheets: A100 and H100 with 80 GB (SXM), H200.
DEVICES = {'A100': (2.04e12, 312e12), 'H100': (3.35e12, 989e12), 'H200': (4.8e12, 989e12)}
CROPS = {2: '2', 10: '2 + 8'}
LOG_INTERVAL = 50  # iterations of the recipes between two log lines, which share its cost
# Kernels of compiled colours for views of one size, and bytes per value. `--table compiled` gives
# 1 and 3 for CPU cores; a GPU reads the images once more, in a kernel that computes the mean.
COMPILED = (2, 4)
PARTS = ('preprocessor', 'joining views', 'heads', 'losses', 'momentum encoder', 'optimizer')
PARTS += ('logging', 'encoders')
MARK, BACKWARD = 'part: ', 'autograd::engine::evaluate_function: '


def find_parts(step: OurStep) -> list[tuple[object, str, str]]:
    """Return owner, method and part of the marked methods of a step."""
    net, slow = step.model, step.model.momentum_encoder
    return [
        (net.data_preprocessor, 'forward', 'preprocessor'),
        (net, 'parse_losses', 'losses'),
        (net, 'update_momentum_encoder', 'momentum encoder'),
        *((net.head, method, 'losses') for method in ('predict', 'gather', 'contrast')),
        *((each, 'forward', 'heads') for each in (net.head.predictor, net.neck, slow.neck)),
        *((each, 'forward', 'encoders') for each in (net.backbone, slow.backbone)),
        (step.optimizer, 'step', 'optimizer'),
    ]


@functools.cache
def count_step(model: str, num_crops: int, batch: int, is_compiled: bool) -> tuple[Kernel, ...]:
    """Return the kernels of a training step of a recipe, and of logging it."""
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / f'patchmix_{model}_in1k.py')
    shapes = dict.fromkeys(('view_1', 'view_2'), (batch, 224, 224, 3))
    if num_crops > 2:
        shapes['local_views'] = (batch, num_crops - 2, 96, 96, 3)
    with torch.device('meta'):
        net = REGISTRY.build(cfg.model).train()
        inputs = {name: torch.empty(shape, dtype=torch.uint8) for name, shape in shapes.items()}
    return take_step(net, cfg.optim_wrapper, inputs, is_compiled)


def take_step(
    net: PatchMix, optim_wrapper: dict, inputs: dict, is_compiled: bool
) -> tuple[Kernel, ...]:
    """Take a step on paper, of which the crops as collated give the shapes; weights are lost."""
    paper = Paper(default='joining views')
    with paper.fake:
        net.to_empty(device='cpu')
        inputs = {name: torch.empty_like(view, device='cpu') for name, view in inputs.items()}
    step = OurStep.__new__(OurStep)
    # Autocast comes from outside.
    step.model, step.optimizer = net, build_optim_wrapper(net, optim_wrapper | {'enabled': False})
    for owner, method, part in find_parts(step):
        paper.mark(owner, method, part)
    for module, part in ((net.backbone, 'encoders'), (net.neck, 'heads'), (net.head, 'heads')):
        paper.mark_parameters(module, part)
    autocast = functools.partial(torch.autocast, 'cpu', dtype=torch.bfloat16)
    compiled = use_compiled_colours(paper, *COMPILED) if is_compiled else nullcontext()
    with paper.recording(), compiled:
        for _ in range(2):  # the first step creates the optimizer's moments
            paper.kernels.clear()
            batch = {'inputs': inputs, 'data_samples': None}
            log_vars = step.step(batch, autocast, are_crops=True)
        with paper.part('logging'):
            stack_numbers(LOG_INTERVAL * [*log_vars.values(), step.optimizer.broken])
    return tuple(paper.kernels)


def sum_parts(kernels: tuple[Kernel, ...], cost: Callable) -> dict:
    """Sum a cost of kernels by part of the step."""
    sums = defaultdict(float)
    for kernel in kernels:
        share = 1 / LOG_INTERVAL if kernel.part == 'logging' else 1
        sums[kernel.part] += share * cost(kernel)
    return sums


def count_parts(args) -> list[dict]:
    """Return the table of kernels and bytes."""

    def cost(kernel: Kernel) -> np.ndarray:
        return np.array([not kernel.is_small, kernel.is_small, kernel.num_bytes, kernel.flops])

    rows = []
    for num_crops, crops in CROPS.items():
        sums = {}
        for title, is_compiled in (('preprocessor', False), ('preprocessor, compiled', True)):
            kernels = count_step(args.model, num_crops, args.batch, is_compiled)
            by_part = sum_parts(kernels, cost)
            sums[title] = by_part.pop('preprocessor')
        values = 3 * (2 * 224**2 + (num_crops - 2) * 96**2)  # of an image's crops
        sums |= {part: by_part[part] for part in PARTS[1:]}
        for part, (kernels, small, num_bytes, flops) in sums.items():
            each = num_bytes / args.batch
            figures = (each / 1e6, each / values, flops / args.batch / 1e9)
            rows.append((crops, part, round(kernels, 1), round(small, 1), *figures))
    columns = ('crops', 'part', 'kernels', 'small', 'MB/image', 'bytes/value', 'GFLOP/image')
    return make_rows(columns, rows)


def model_seconds(kernels: tuple[Kernel, ...], device: str, launch: float) -> dict[str, float]:
    """Return the modelled seconds of a step by part."""
    bandwidth, rate = DEVICES[device]
    return sum_parts(
        kernels, lambda each: max(each.num_bytes / bandwidth, each.flops / rate, launch / 1e6)
    )


def model_steps(args) -> list[dict]:
    """Return the table of modelled times."""
    rows = []
    for model, num_crops, way in product(('vit-s', 'vit-b'), CROPS, ('eager', 'compiled')):
        kernels = count_step(model, num_crops, args.batch, way == 'compiled')
        row = {'model': model, 'crops': CROPS[num_crops], 'preprocessor': way}
        for device in DEVICES:
            seconds = model_seconds(kernels, device, args.launch)
            step = sum(seconds.values())
            row[f'{device}: step (ms)'] = 1000 * step
            row[f'{device}: views (ms)'] = 1000 * seconds['preprocessor']
            row[f'{device}: x encoders'] = round(step / seconds['encoders'], 3)
        rows.append(row)
    return rows


def count_compiled(args) -> list[dict]:
    """Compile colours for CPU cores; return the compiler's count of kernels and bytes."""
    rows = []
    torch._logging.set_logs(inductor_metrics=True)
    torch._inductor.config.force_disable_caches = True
    half = mock.patch.object(colours, 'choose_work_dtype', lambda images: torch.float16)
    for side in (224, 96):
        images = torch.zeros(8, 3, side, side, dtype=torch.uint8)
        plan = ViewAugment().draw(len(images), side)
        metrics.reset()
        with torch.no_grad(), half:
            colours._compile()(images, colours.arrange(plan), to_rgb=True)
        kernels = sum(size > 0 for _, size in metrics.nodes_num_elem)
        row = {'pixels': side, 'kernels': kernels}
        rows.append(row | {'bytes/value': metrics.num_bytes_accessed / images.numel()})
    return rows


class Marks(Parts):
    """Mark the running part in the profile, too."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Assign the body and its backward to a part."""
        with super().part(name), record_function(MARK + name):
            yield


def attribute(trace: list[dict], marks: Marks) -> list[tuple[str, str, float]]:
    """Return part, name and microseconds of each kernel of a profile's ``traceEvents``."""
    spans, launches, kernels = defaultdict(list), {}, []
    for event in trace:
        name, about, what = event.get('name', ''), event.get('args', {}), None
        if event.get('cat') in ('cuda_runtime', 'cuda_driver'):
            launches[about.get('correlation')] = event['tid'], event['ts']
        elif event.get('cat') == 'user_annotation' and name.startswith(MARK):
            what = name.removeprefix(MARK)
        elif name.startswith(BACKWARD):
            # Sums of gradients have no number; they follow the node that made the gradient.
            is_sum = 'AccumulateGrad' in name or 'Sequence number' not in about
            what = '' if is_sum else marks.part_of(about['Sequence number'])
        if what is not None:
            spans[event['tid']].append([event['ts'], event['ts'] + event['dur'], what])
    for thread in spans.values():
        thread.sort()
        for before, span in zip([[0, 0, marks.default], *thread], thread, strict=False):
            span[2] = span[2] or before[2]
    for event in trace:
        if event.get('cat') in ('kernel', 'gpu_memcpy', 'gpu_memset'):
            thread, when = launches.get(event['args'].get('correlation'), (None, 0))
            inside = [what for began, end, what in spans[thread] if began <= when <= end]
            kernels.append((inside[-1] if inside else marks.default, event['name'], event['dur']))
    return kernels


def profile_step(args) -> list[dict]:
    """Return counted, modelled and measured kernels of each part, on a GPU."""
    if DEVICE == 'cpu':
        sys.exit(f'There is no GPU that torch {torch.__version__} can use: nothing to profile.')
    autocast, _ = set_up('bf16')
    with torch.device('cuda'):
        step = OurStep(model=args.model)
    batch = make_batch(args.batch, args.crops - 2)  # on the host, as from the loader
    batch['inputs'] = {name: views.pin_memory() for name, views in batch['inputs'].items()}
    host_seconds = []

    def take() -> None:
        began = time.perf_counter()
        step.step(batch, autocast, are_crops=True)
        host_seconds.append(time.perf_counter() - began)

    whole = measure({'step': take}, args.repeats, warmup=3)['step']
    host = statistics.median(host_seconds[3:])
    marks = Marks('joining views')
    for owner, method, part in find_parts(step):
        marks.mark(owner, method, part)
    take()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        take()
        torch.cuda.synchronize()
    with tempfile.NamedTemporaryFile(suffix='.json') as file:
        profiler.export_chrome_trace(file.name)
        kernels = attribute(json.loads(Path(file.name).read_text())['traceEvents'], marks)
    counted = count_step(args.model, args.crops, args.batch, colours._works)
    device = next((name for name in DEVICES if name in torch.cuda.get_device_name()), 'H100')
    modelled = model_seconds(counted, device, args.launch)
    columns = ('kernels counted', 'kernels run', f'modelled, {device} (ms)', 'measured (ms)')
    numbers = {}
    for part in PARTS:
        measured = [us / 1000 for owner, _, us in kernels if owner == part]
        num_counted = sum(kernel.part == part for kernel in counted)
        numbers[part] = (num_counted, len(measured), 1000 * modelled[part], sum(measured))
    numbers['all kernels'] = [sum(column) for column in zip(*numbers.values(), strict=True)]
    for part, seconds in (('step, by the clock', whole), ('host', host)):
        numbers[part] = (None, None, None, 1000 * seconds)
    return make_rows(('part', *columns), [(part, *row) for part, row in numbers.items()])


TABLES = dict(
    counted=count_parts, modelled=model_steps, compiled=count_compiled, profile=profile_step
)


def main() -> None:
    args = parse_args(
        __doc__, table=tuple(TABLES), batch=128, model=('vit-s', 'vit-b'), crops=2, launch=5.0
    )
    set_up()
    rows = TABLES[args.table](args)
    names = ('batch', 'model', 'crops', 'launch')
    settings = {name: getattr(args, name) for name in names}
    report(f'device cost, {args.table}', rows, bfloat16='autocast', **settings)


if __name__ == '__main__':
    main()
