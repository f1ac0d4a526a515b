"""Further tables of step.py: parts, the published code, freed memory and a detector."""

import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from harness import (
    CONFIGS,
    DEVICE,
    keep_freed_memory,
    make_rows,
    measure,
    measure_apart,
    synchronize,
)
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from paper import Parts
from step import OurStep, make_batch
from torch import distributed

from mmpatchmix.cli.arguments import set_precision
from mmpatchmix.cli.verb import USERS_OWN_SETTINGS
from mmpatchmix.registry import MODELS

NUM_OBJECTS = 8  # per image of the detector


class Clock(Parts):
    """Seconds of the marked methods, by part."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str):
        """Time the body."""
        began = time.perf_counter()
        yield
        synchronize()
        self.seconds[name].append(time.perf_counter() - began)

    def median_ms(self, num_steps: int) -> dict[str, float]:
        """Return the median milliseconds per step of each part, without the first step."""
        medians = {}
        for name, each in self.seconds.items():
            calls = len(each) // (num_steps + 1)
            sums = [sum(each[i : i + calls]) for i in range(calls, len(each), calls)]
            medians[name] = 1000 * statistics.median(sums)
        return medians


def compare_parts(args, autocast: Callable) -> list[dict]:
    """Measure the parts of our step with 2 crops, and of its floor."""
    torch.set_default_device(DEVICE)
    ours, backbone = OurStep(), OurStep().model.backbone
    inputs = ours.prepare(make_batch(args.batch, 0))
    pair = [torch.randn(args.batch, 3, 224, 224) for _ in range(2)]
    torch.set_default_device(None)  # as in training
    model, optimizer, step_clock, floor_clock = ours.model, ours.optimizer, Clock(), Clock()
    for owner, method, part in (
        (model, 'update_momentum_encoder', 'momentum update'),
        (model.momentum_encoder.backbone, 'forward', 'keys: backbone'),
        (model.momentum_encoder.neck, 'forward', 'keys: projector'),
        (model.backbone, 'forward', 'queries: backbone'),
        (model.neck, 'forward', 'queries: projector, predictor'),
        (model.head.predictor, 'forward', 'queries: projector, predictor'),
        (model.head, 'contrast', 'losses'),
        (optimizer, 'backward', 'backward'),
        (optimizer, 'step', 'AdamW'),
        (optimizer, 'zero_grad', 'freeing gradients'),
    ):
        step_clock.mark(owner, method, part)

    def take_floor() -> None:
        with autocast():
            with floor_clock.part('queries: backbone'):
                total = backbone(torch.cat(pair))[-1].sum()
            with floor_clock.part('backward'):
                total.backward()
            with torch.no_grad(), floor_clock.part('keys: backbone'):
                backbone(torch.cat([*pair, pair[0]]))
        with floor_clock.part('freeing gradients'):
            backbone.zero_grad()

    for _ in range(1 + args.repeats):
        ours.step(inputs, autocast)
        take_floor()
    step, floor = (clock.median_ms(args.repeats) for clock in (step_clock, floor_clock))
    rows = [(name, value, floor.get(name)) for name, value in step.items()]
    rows.append(('sum', sum(step.values()), sum(floor.values())))
    return make_rows(('part', 'step (ms)', 'floor (ms)'), rows)


def compare_published(args, autocast: Callable) -> list[dict]:
    """Measure our step and that of a clone of the published code."""
    from step_peers import build_published, import_published

    theirs = import_published(args.code)
    # The published code gathers keys even in one process.
    backend = 'gloo' if DEVICE == 'cpu' else 'nccl'
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    with torch.device(DEVICE):
        views = {name: torch.randn(args.batch, 3, 224, 224) for name in ('view_1', 'view_2')}
        if args.crops > 2:
            views['local_views'] = torch.randn(args.crops - 2, args.batch, 3, 96, 96)
        ours, candidates = OurStep(), {}
        for name in ('fused', 'plain'):
            step = build_published(theirs, name == 'fused', views)
            candidates[f'published, {name} attention'] = partial(step, autocast)
    mix = ours.model.data_preprocessor.mix
    candidates['ours'] = lambda: ours.step(views | mix(views), autocast)
    seconds = measure(candidates, args.repeats)
    distributed.destroy_process_group()
    quickest = min(value for name, value in seconds.items() if name != 'ours')
    rows = [(name, value, value / quickest) for name, value in seconds.items()]
    return make_rows(('step', 's', 'of theirs'), rows)


def compare_freed_memory(args, autocast: Callable) -> list[dict]:
    """Measure our step with and without keeping freed memory, in processes that take turns."""
    env = {name: value for name, value in os.environ.items() if name not in USERS_OWN_SETTINGS}
    options = ['--batch', args.batch, '--crops', args.crops, '--precision', args.precision]
    runs = {('default', 'as glibc has it'): [], ('keep', 'kept, as training does'): []}
    for _ in range(args.repeats):
        for (setting, _), each in runs.items():
            each.append(measure_apart('--child', setting, *options, env=env))
    rows = []
    for (_, name), each in runs.items():
        medians = {key: statistics.median(run[key] for run in each) for key in each[0]}
        rows.append({'freed memory': name} | medians)
    return [row | {'of the first': row['s'] / rows[0]['s']} for row in rows]


def measure_here(args, warmup: int = 2, num_steps: int = 5) -> dict[str, float]:
    """Return the median seconds of a step in this process, its page faults and the peak memory."""
    if args.child == 'keep':
        keep_freed_memory()
    torch.manual_seed(0)
    is_bf16 = args.precision == 'bf16'
    autocast = partial(torch.autocast, 'cpu', dtype=torch.bfloat16, enabled=is_bf16)
    ours = OurStep()
    inputs = ours.prepare(make_batch(args.batch, args.crops - 2))
    steps = []
    for _ in range(warmup + num_steps):
        faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        ours.step(inputs, autocast)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        steps.append((time.perf_counter() - began, usage.ru_minflt - faults))
    seconds, faults = (statistics.median(each) for each in zip(*steps[warmup:], strict=True))
    peak = usage.ru_maxrss / 1024
    return {'s': seconds, 'page faults': faults, 'peak of the process (MiB)': peak}


def measure_detector(args, autocast: Callable) -> list[dict]:
    """Measure a step of Mask R-CNN on random images, boxes and masks."""
    from mmdet.testing import demo_mm_inputs

    cfg = Config.fromfile(CONFIGS / f'coco/{args.config}.py')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train().to(DEVICE)
    set_precision(cfg, args.precision == 'bf16')  # as --amp and --no-amp
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    shape, num_items = (3, args.size, args.size), [NUM_OBJECTS] * args.batch
    batch = demo_mm_inputs(args.batch, shape, num_items, with_mask=True)
    seconds = measure({'step': lambda: model.train_step(batch, wrapper)}, args.repeats)['step']
    return [{'step': args.config, 's': seconds, 'images/s': args.batch / seconds}]
