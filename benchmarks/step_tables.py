"""Further tables of step.py: the published code, freed memory and a detector."""

import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from harness import DEVICE, keep_freed_memory, measure, measure_apart
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from step import CONFIGS, OurStep, make_batch
from torch import distributed

from mmpatchmix.cli.arguments import set_precision
from mmpatchmix.cli.verb import USERS_OWN_SETTINGS
from mmpatchmix.registry import MODELS

NUM_OBJECTS = 8  # per image of the detector


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
        ours = OurStep()
        candidates = {
            f'published, {name} attention': partial(
                build_published(theirs, name == 'fused', views), autocast
            )
            for name in ('fused', 'plain')
        }
    candidates['ours'] = lambda: ours.step(
        views | ours.model.data_preprocessor.mix(views), autocast
    )
    seconds = measure(candidates, args.repeats)
    distributed.destroy_process_group()
    quickest = min(value for name, value in seconds.items() if name != 'ours')
    return [
        {'step': name, 's': value, 'of theirs': value / quickest} for name, value in seconds.items()
    ]


def compare_freed_memory(args, autocast: Callable) -> list[dict]:
    """Measure our step with and without keeping freed memory, in processes that take turns."""
    env = {name: value for name, value in os.environ.items() if name not in USERS_OWN_SETTINGS}
    options = ['--batch', args.batch, '--crops', args.crops, '--precision', args.precision]
    runs = {'default': [], 'keep': []}
    for _ in range(args.repeats):
        for setting, each in runs.items():
            each.append(measure_apart('--child', setting, *options, env=env))
    rows = []
    for name, each in zip(
        ('as glibc has it', 'kept, as training does'), runs.values(), strict=True
    ):
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
