"""Further tables of step.py: the published code, freed memory, a detector, attention."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import DEVICE, keep_freed_memory, measure, measure_apart
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from step import CONFIGS, OurStep, make_batch
from torch import Tensor, distributed
from torch.nn import functional as F

from mmpatchmix.cli.arguments import set_precision
from mmpatchmix.cli.verb import USERS_OWN_SETTINGS
from mmpatchmix.registry import MODELS

NUM_OBJECTS = 8  # per image of the detector
NUM_IMAGES = 8  # of attention
# heads, tokens, channels per head: crops of 96, 224 and 32 (patch 2) pixels, and larger ones
SIZES = [(12, 37, 32), (12, 197, 32), (3, 257, 64), (12, 257, 32), (12, 577, 32), (12, 1025, 64)]


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
        steps = {
            f'published, {name} attention': build_published(theirs, name == 'fused', views)
            for name in ('fused', 'plain')
        }

    def step() -> None:
        ours.step(views | ours.model.data_preprocessor.mix(views), autocast)

    candidates = {name: partial(other, autocast) for name, other in steps.items()}
    seconds = measure({'ours': step} | candidates, args.repeats)
    distributed.destroy_process_group()
    quickest = min(seconds[name] for name in steps)
    return [
        {'step': name, 's': value, 'of theirs': value / quickest} for name, value in seconds.items()
    ]


def compare_freed_memory(args, autocast: Callable) -> list[dict]:
    """Measure our step with and without keeping freed memory, in processes that take turns."""
    if platform.libc_ver()[0] != 'glibc':
        print('not measured: this system has no glibc, whose settings are compared')
        sys.exit()
    env = {name: value for name, value in os.environ.items() if name not in USERS_OWN_SETTINGS}
    options = ['--batch', args.batch, '--crops', args.crops, '--precision', args.precision]
    settings = {'as glibc has it': 'default', 'kept, as training does': 'keep'}
    runs = {name: [] for name in settings}
    for _ in range(args.repeats):
        for name, setting in settings.items():
            runs[name].append(measure_apart('--child', setting, *options, env=env))
    rows = [
        {'freed memory': name}
        | {key: statistics.median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    ]
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
    seconds, faults = [], []
    for _ in range(warmup + num_steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        ours.step(inputs, autocast)
        seconds.append(time.perf_counter() - began)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        's': statistics.median(seconds[warmup:]),
        'page faults': statistics.median(faults[warmup:]),
        'peak of the process (MiB)': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def make_annotated_images(num_images: int, size: int) -> dict:
    """Return noise with boxes of an eighth to a half of the image, and masks that fill them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    rng = np.random.default_rng(0)
    samples = []
    for _ in range(num_images):
        sides = rng.integers(size // 8, size // 2, (NUM_OBJECTS, 2))
        corners = (rng.random((NUM_OBJECTS, 2)) * (size - sides)).astype(int)
        masks = np.zeros((NUM_OBJECTS, size, size), np.uint8)
        for mask, (x, y), (width, height) in zip(masks, corners, sides, strict=True):
            mask[y : y + height, x : x + width] = 1
        names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        sample = DetDataSample(metainfo=dict.fromkeys(names, (size, size)))
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(np.concatenate([corners, corners + sides], 1)).float(),
            labels=torch.from_numpy(rng.integers(0, 80, NUM_OBJECTS)),
            masks=BitmapMasks(masks, size, size),
        )
        samples.append(sample)
    images = torch.from_numpy(rng.integers(0, 256, (num_images, 3, size, size), np.uint8))
    return dict(inputs=list(images), data_samples=samples)


def measure_detector(args, autocast: Callable) -> list[dict]:
    """Measure a step of Mask R-CNN."""
    cfg = Config.fromfile(CONFIGS / f'coco/{args.config}.py')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train().to(DEVICE)
    set_precision(cfg, args.precision == 'bf16')  # as --amp and --no-amp
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = make_annotated_images(args.batch, args.size)
    seconds = measure({'step': lambda: model.train_step(batch, wrapper)}, args.repeats)['step']
    return [{'step': args.config, 's': seconds, 'images/s': args.batch / seconds}]


def compare_attention(args, autocast: Callable) -> list[dict]:
    """Measure fused and plain attention; one query is the last block, which encodes one token."""
    types = (torch.bfloat16, torch.float32)
    return [
        attend(dtype, size, num_queries, args.repeats)
        for dtype in types
        for size in SIZES
        for num_queries in (size[1], 1)
    ]


def attend(dtype: torch.dtype, size: tuple, num_queries: int, repeats: int) -> dict:
    """Return a row of the table of attention."""
    heads, tokens, dims = size
    query = torch.randn(NUM_IMAGES, heads, num_queries, dims, dtype=dtype, device=DEVICE)
    key, value = torch.randn(2, NUM_IMAGES, heads, tokens, dims, dtype=dtype, device=DEVICE)
    inputs = [each.requires_grad_() for each in (query, key, value)]

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return weights.softmax(-1) @ value

    def run(attention: Callable, with_backward: bool) -> None:
        with torch.set_grad_enabled(with_backward):
            out = attention(*inputs)
        if with_backward:
            out.sum().backward()

    candidates = {
        f'{name} {way}': partial(run, attention, way == 'both')
        for way in ('forward', 'both')
        for name, attention in (('fused', F.scaled_dot_product_attention), ('plain', plain))
    }
    seconds = measure(candidates, repeats)
    row = {'type': str(dtype)[6:], 'heads': heads, 'keys': tokens, 'queries': num_queries}
    row |= {f'{name} (ms)': 1e3 * each for name, each in seconds.items()}
    for way in ('forward', 'both'):
        row[f'plain / fused, {way}'] = seconds[f'plain {way}'] / seconds[f'fused {way}']
    return row
