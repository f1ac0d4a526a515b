"""What a training step asks of an accelerator, counted on paper: nothing of it is computed.

    python benchmarks/device_cost.py                                  # kernels and bytes by part
    python benchmarks/device_cost.py --table ops --part preprocessor  # by operation
    python benchmarks/device_cost.py --table modelled                 # the time that implies
    python benchmarks/device_cost.py --table compiled                 # what the compiler makes

A step of the ImageNet recipes runs on tensors without data, under bfloat16 autocast, and every
operation that is not a view is one kernel. Its bytes are those of its inputs and outputs in memory:
what is broadcast counts once, a selection reads as much as it writes. Kernels on 64 values or fewer
are counted apart, as small; sums over many tensors (momentum, AdamW) are one kernel, where a GPU
takes a few. "compiled" is the preprocessor with a compiler: colours are then two kernels, by what
`--table compiled` says of them; without one, all is as counted.

The model: a kernel takes as long as the slowest of its bytes, its operations and its launch.
"Encoders" are the calls of the ViTs, forward and backward, and nothing else.
"""

import functools
from collections import defaultdict
from contextlib import nullcontext
from unittest import mock

import torch
from harness import parse_args, report
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from paper import Kernel, Paper, use_compiled_colours
from step import CONFIGS, OurStep
from torch._inductor import metrics

from mmpatchmix.engine.loss_log_hook import stack_numbers
from mmpatchmix.models import PatchMix
from mmpatchmix.models.augment import fused_colours
from mmpatchmix.models.augment.view_augment import ViewAugment
from mmpatchmix.registry import MODELS as REGISTRY

# (bytes/s, operations/s in bfloat16) of data sheets: A100 and H100 with 80 GB (SXM), H200.
DEVICES = {
    'A100': (2.04e12, 312e12),
    'H100': (3.35e12, 989e12),
    'H200': (4.8e12, 989e12),
}
MODELS = ('vit-s', 'vit-b')
CROPS = (2, 10)
LOG_INTERVAL = 50  # iterations, of the recipes; the cost of logging is spread over them
# Kernels of compiled colours for views of one size, and bytes per value. `--table compiled` says
# one and 3 for CPU cores: a byte read, two written. A GPU does the mean in a kernel of its own,
# which reads the images once more.
COMPILED = (2, 4)
PARTS = (
    'preprocessor',
    'joining views',
    'heads',
    'losses',
    'momentum encoder',
    'optimizer',
    'logging',
    'encoders',
)


@functools.cache
def count_step(model: str, num_crops: int, batch: int, is_compiled: bool) -> tuple[Kernel, ...]:
    """Return the kernels of a training step of a recipe, and of logging it."""
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / f'patchmix_{model}_in1k.py')
    with torch.device('meta'):
        net = REGISTRY.build(cfg.model).train()
    return take_step(net, cfg.optim_wrapper, make_batch(batch, num_crops - 2), is_compiled)


def take_step(
    net: PatchMix, optim_wrapper: dict, batch: dict, is_compiled: bool
) -> tuple[Kernel, ...]:
    """Take a step on paper.

    Args:
        net: The model, whose weights are lost.
        optim_wrapper: Config of the optimizer.
        batch: As collated; its values are lost.
        is_compiled: Whether colours are.
    """
    paper = Paper(default='joining views')
    with paper.fake:
        net.to_empty(device='cpu')
        inputs = {
            name: torch.empty_like(view, device='cpu') for name, view in batch['inputs'].items()
        }
    step = OurStep.__new__(OurStep)
    # Autocast comes from outside.
    step.model, step.optimizer = net, build_optim_wrapper(net, optim_wrapper | {'enabled': False})
    for owner, method, part in find_parts(step):
        paper.mark(owner, method, part)
    for module, part in ((net.backbone, 'encoders'), (net.neck, 'heads'), (net.head, 'heads')):
        paper.mark_parameters(module, part)
    logs: list[dict] = []
    net.parse_losses = keep_logs(net.parse_losses, logs)
    colours = use_compiled_colours(paper, *COMPILED) if is_compiled else nullcontext()
    with paper, colours:
        for _ in range(2):  # the first step makes the optimizer's moments
            paper.kernels.clear()
            step.step_from_workers(
                {'inputs': inputs, 'data_samples': None},
                lambda: torch.autocast('cpu', dtype=torch.bfloat16),
            )
        with paper.part('logging'):
            stack_numbers(LOG_INTERVAL * [*logs[-1].values(), step.optimizer.broken])
    return tuple(paper.kernels)


def find_parts(step: OurStep) -> list[tuple[object, str, str]]:
    """Return which methods of which objects are which part of a step."""
    net = step.model
    return [
        (net.data_preprocessor, 'forward', 'preprocessor'),
        (net, 'parse_losses', 'losses'),
        (net, 'update_momentum_encoder', 'momentum encoder'),
        (net.head, 'predict', 'losses'),
        (net.head, 'gather', 'losses'),
        (net.head, 'contrast', 'losses'),
        (net.head.predictor, 'forward', 'heads'),
        (net.neck, 'forward', 'heads'),
        (net.momentum_encoder.neck, 'forward', 'heads'),
        (net.backbone, 'forward', 'encoders'),
        (net.momentum_encoder.backbone, 'forward', 'encoders'),
        (step.optimizer, 'step', 'optimizer'),
    ]


def make_batch(num_images: int, num_local: int) -> dict:
    """Shapes of a batch as the workers collate it."""
    shapes = dict.fromkeys(('view_1', 'view_2'), (num_images, 224, 224, 3))
    if num_local:
        shapes['local_views'] = (num_images, num_local, 96, 96, 3)
    inputs = {
        name: torch.empty(shape, dtype=torch.uint8, device='meta') for name, shape in shapes.items()
    }
    return {'inputs': inputs, 'data_samples': None}


def keep_logs(parse_losses, logs: list):
    def parse(losses: dict):
        loss, log = parse_losses(losses)
        logs.append(log)
        return loss, log

    return parse


def sum_by(kernels: tuple[Kernel, ...], key) -> dict:
    """Sum kernels, small kernels, bytes and operations of a step by a key of a kernel."""
    sums: dict = {}
    for kernel in kernels:
        share = 1 / LOG_INTERVAL if kernel.part == 'logging' else 1
        numbers = (not kernel.is_small, kernel.is_small, kernel.num_bytes, kernel.flops)
        before = sums.get(key(kernel), (0, 0, 0, 0))
        sums[key(kernel)] = tuple(a + share * b for a, b in zip(before, numbers, strict=True))
    return sums


def describe(sums: dict, names: dict, num_crops: int, batch: int) -> list[dict]:
    """Make rows of sums."""
    values = batch * count_values(num_crops)
    rows = []
    for key, (kernels, small, num_bytes, flops) in sums.items():
        cells = dict(zip(names, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append(
            {
                'crops': show_crops(num_crops),
                **cells,
                'kernels': round(kernels, 1),
                'small': round(small, 1),
                'MB/image': num_bytes / batch / 1e6,
                'bytes/value': num_bytes / values,
                'GFLOP/image': flops / batch / 1e9,
            }
        )
    return rows


def count_values(num_crops: int) -> int:
    """uint8 values of an image's crops."""
    return 3 * (2 * 224**2 + (num_crops - 2) * 96**2)


def show_crops(num_crops: int) -> str:
    return f'2 + {num_crops - 2}' if num_crops > 2 else '2'


def count_parts(args) -> list[dict]:
    rows = []
    for num_crops in CROPS:
        sums = {}
        for is_compiled in (False, True):
            kernels = count_step(args.model, num_crops, args.batch, is_compiled)
            by_part = sum_by(kernels, lambda kernel: kernel.part)
            title = 'preprocessor, compiled' if is_compiled else 'preprocessor'
            sums[title] = by_part.pop('preprocessor')
        sums |= {part: by_part[part] for part in PARTS if part in by_part}
        rows += describe(sums, ('part',), num_crops, args.batch)
    return rows


def count_operations(args) -> list[dict]:
    rows = []
    for num_crops in CROPS:
        kernels = count_step(args.model, num_crops, args.batch, False)
        kernels = tuple(each for each in kernels if args.part in ('', each.part))
        sums = sum_by(kernels, lambda kernel: (kernel.part, kernel.name))
        most_first = dict(sorted(sums.items(), key=lambda item: -item[1][2]))
        rows += describe(most_first, ('part', 'operation'), num_crops, args.batch)
    return rows


def model_seconds(kernels: tuple[Kernel, ...], device: str, launch: float) -> dict[str, float]:
    """Seconds of a step by part; see the text above."""
    bandwidth, rate = DEVICES[device]
    seconds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        share = 1 / LOG_INTERVAL if kernel.part == 'logging' else 1
        slowest = max(kernel.num_bytes / bandwidth, kernel.flops / rate, launch)
        seconds[kernel.part] += share * slowest
    return seconds


def model_steps(args) -> list[dict]:
    rows = []
    for model in MODELS:
        for num_crops in CROPS:
            for is_compiled in (False, True):
                kernels = count_step(model, num_crops, args.batch, is_compiled)
                row = {
                    'model': model,
                    'crops': show_crops(num_crops),
                    'preprocessor': 'compiled' if is_compiled else 'eager',
                }
                for device in DEVICES:
                    seconds = model_seconds(kernels, device, args.launch / 1e6)
                    step, encoders = sum(seconds.values()), seconds['encoders']
                    row |= {
                        f'{device}: step (ms)': 1000 * step,
                        f'{device}: views (ms)': 1000 * seconds['preprocessor'],
                        f'{device}: x encoders': round(step / encoders, 3),
                    }
                rows.append(row | {'measured (ms)': None})
    return rows


def count_compiled(args) -> list[dict]:
    """Compile colours for CPU cores, and let the compiler say what its kernels read and write."""
    rows = []
    torch._logging.set_logs(inductor_metrics=True)
    torch._inductor.config.force_disable_caches = True
    for side in (224, 96):
        images = torch.zeros(args.compiled_batch, 3, side, side, dtype=torch.uint8)
        plan = ViewAugment().draw(len(images), side)
        metrics.reset()
        with (
            torch.no_grad(),
            mock.patch.object(fused_colours, 'choose_work_dtype', lambda _: torch.float16),
        ):
            fused_colours._compile()(images, fused_colours.arrange(plan), to_rgb=True)
        rows.append(
            {
                'pixels': side,
                'kernels': sum(size > 0 for _, size in metrics.nodes_num_elem),
                'bytes/value': metrics.num_bytes_accessed / images.numel(),
            }
        )
    return rows


TABLES = {
    'counted': count_parts,
    'ops': count_operations,
    'modelled': model_steps,
    'compiled': count_compiled,
}


def main() -> None:
    args = parse_args(
        __doc__,
        repeats=1,
        table='counted',
        batch=128,
        model='vit-s',
        part='',
        launch=5.0,
        compiled_batch=8,
    )
    MMLogger.get_instance('benchmark', log_level='WARNING')
    settings = dict(batch=args.batch, bfloat16='autocast')
    if args.table == 'modelled':
        settings |= {'launch (us)': args.launch} | {
            f'{name} (TB/s, TFLOP/s)': f'{bandwidth / 1e12:g}, {rate / 1e12:g}'
            for name, (bandwidth, rate) in DEVICES.items()
        }
    report(f'device cost, {args.table}', TABLES[args.table](args), **settings)


if __name__ == '__main__':
    main()
