"""A training step of ViT-S/16 beside the encoders alone, its parts, and steps of other codebases.

    python benchmarks/step.py --crops 10 --precision bf16
    python benchmarks/step.py --model vit-b --table ours --compile yes --batch 128 --precision bf16
    python benchmarks/step.py --table published --code /tmp/published --crops 10
    python benchmarks/step.py --table detector --batch 2 --size 800 --precision auto

The *floor* is the forward and backward of the queries and the forward of the keys through a
backbone alone. Goals: ours <= 1.08 x the floor of our backbone, and 0.9 x the published code (git
clone https://github.com/visresearch/patchmix), whose license keeps it out of this repository.
docs/performance.md explains the tables.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from harness import DEVICE, MOMENTUM, make_rows, measure, parse_args, report, set_up, synchronize
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.models.backbones import VisionTransformer
from paper import Parts
from step_peers import NaivePatchMix, lightly_step, mocov3_step
from torch import Tensor, nn

from mmpatchmix.models.patchmix import PatchMix
from mmpatchmix.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs'


def make_batch(num_images: int, num_local: int) -> dict:
    """Return random crops as the workers would collate them."""
    shapes = dict.fromkeys(('view_1', 'view_2'), (num_images, 3, 224, 224))
    if num_local:
        shapes['local_views'] = (num_images, num_local, 3, 96, 96)
    inputs = {n: torch.randint(0, 256, shape, dtype=torch.uint8) for n, shape in shapes.items()}
    return {'inputs': inputs, 'data_samples': None}


class OurStep:
    """An iteration as the Runner does it, of the ImageNet recipe of ``vit-s`` or ``vit-b``."""

    def __init__(self, compile: bool | dict = False, model: str = 'vit-s') -> None:
        cfg = Config.fromfile(CONFIGS / f'patchmix_{model}_in1k.py')
        cfg.model.compile = compile
        self.model: PatchMix = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(torch.get_default_device()).train()  # the data preprocessor needs the call
        cfg.optim_wrapper.enabled = False  # autocast comes from outside, for all alike
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)

    def prepare(self, batch: dict) -> dict:
        """Make views and mixes as in training; the host draws its numbers on the host."""
        with torch.device('cpu'):
            return self.model.data_preprocessor(batch, training=True)['inputs']

    def step(self, inputs: dict, autocast: Callable, are_crops: bool = False) -> None:
        """Train on the preprocessor's outputs, or on the workers' crops."""
        self.model.update_momentum_encoder(MOMENTUM)
        with autocast():
            if are_crops:
                inputs = self.model.data_preprocessor(inputs, training=True)['inputs']
            losses = self.model(inputs, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.optimizer.update_params(loss)


def make_floor(
    backbone: nn.Module, queries: list[Tensor], keys: list[Tensor], autocast: Callable
) -> Callable[[], None]:
    """Return the forward and backward of queries and the forward of keys, a call per resolution."""

    def run():
        with autocast():
            for images in queries:
                backbone(images)[-1].sum().backward()
            with torch.no_grad():
                for images in keys:
                    backbone(images)
        backbone.zero_grad()

    return run


def compare_peers(args, autocast: Callable) -> list[dict]:
    """Measure our step, its floors and, unless only ours is wanted, steps of others."""
    num_local = args.crops - 2
    torch.set_default_device(DEVICE)
    ours = OurStep(model=args.model)
    batch = make_batch(args.batch, num_local)
    inputs = ours.prepare(batch)
    arch = Config.fromfile(CONFIGS / f'patchmix_{args.model}_in1k.py').model.backbone
    plain = VisionTransformer(**{key: value for key, value in arch.items() if key != 'type'})
    pair = torch.randn(2 * args.batch, 3, 224, 224)
    queries, keys = [pair], [torch.cat([pair, pair[: args.batch]])]
    if num_local:
        queries.append(torch.randn(2 * num_local * args.batch, 3, 96, 96))
    candidates = {
        'floor, our backbone': make_floor(ours.model.backbone, queries, keys, autocast),
        "floor, mmpretrain's ViT": make_floor(plain, queries, keys, autocast),
        'ours': lambda: ours.step(inputs, autocast),
        'ours + preprocessor': lambda: ours.step(batch, autocast, are_crops=True),
    }
    if args.compile != 'no':
        is_graph = args.compile == 'graphs'
        compiled = OurStep(dict(mode='reduce-overhead') if is_graph else True, args.model)
        name = 'ours, CUDA graphs' if is_graph else 'ours, compiled'
        candidates[name] = lambda: compiled.step(inputs, autocast)
    own_floor, sizes = {}, {}
    if args.table == 'peers':
        others, own, size = build_peers(args, plain, autocast)
        naive = NaivePatchMix(OurStep(model=args.model).model)
        candidates['naive PatchMix'] = lambda: naive.step(inputs, autocast)
        candidates |= others
        own_floor, sizes = dict.fromkeys(others, own), dict.fromkeys(others, size)
    torch.set_default_device(None)  # in training, too, the host makes its tensors on the host
    seconds = measure(candidates, args.repeats)
    ours_floor, plain_floor = (seconds[name] for name in list(candidates)[:2])
    return [
        {
            'step': name,
            'images of the batch': sizes.get(name, args.batch),
            's': value,
            'of our floor': value / ours_floor,
            'of own floor': value / seconds.get(own_floor.get(name), plain_floor),
        }
        for name, value in seconds.items()
    ]


def build_peers(args, plain: nn.Module, autocast: Callable) -> tuple[dict, str, int]:
    """Return steps of others, the name of their floor, and the images of their batch."""
    num_local = args.crops - 2
    size = round(args.batch * (5 + 2 * num_local) / (4 + num_local))
    views = [torch.randn(size, 3, 224, 224) for _ in range(2)]
    queries = [torch.cat(views)]
    if num_local:
        crops = torch.randn(num_local, size, 3, 96, 96)
        others = {'DINO, lightly': lightly_step(views, crops)}
        queries.append(crops.flatten(0, 1))
    else:
        others = {'MoCo v3, mmpretrain': mocov3_step(views), 'MoCo, lightly': lightly_step(views)}
    own = 'floor of DINO' if num_local else 'floor of MoCo'
    steps = {name: partial(step, autocast) for name, step in others.items()}
    return steps | {own: make_floor(plain, queries, queries[:1], autocast)}, own, size


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


def main() -> None:
    import step_tables

    tables = {
        'peers': ('training step', compare_peers),
        'ours': ('training step', compare_peers),
        'parts': ('parts of a step', compare_parts),
        'freed-memory': ('keeping freed memory', step_tables.compare_freed_memory),
        'published': ('a step beside the published code', step_tables.compare_published),
        'detector': ('a step of a detector', step_tables.measure_detector),
    }
    args = parse_args(
        __doc__, table=tuple(tables), batch=8, crops=2, precision=('fp32', 'bf16', 'auto'),
        compile=('no', 'yes', 'graphs'), model=('vit-s', 'vit-b'), code='',
        config='mask-rcnn_vit-s_fpn_1x', size=800, child='',
    )  # fmt: skip
    if args.child:  # of freed-memory
        print(json.dumps(step_tables.measure_here(args)))
        return
    autocast, args.precision = set_up(args.precision)
    name, table = tables[args.table]
    names = ('batch', 'crops', 'precision', 'model', 'repeats')
    report(name, table(args, autocast), **{name: getattr(args, name) for name in names})


if __name__ == '__main__':
    main()
