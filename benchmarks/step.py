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
from collections.abc import Callable
from functools import partial

import torch
from harness import CONFIGS, DEVICE, MOMENTUM, make_rows, measure, parse_args, report, set_up
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.models.backbones import VisionTransformer
from step_peers import NaivePatchMix, lightly_step, mocov3_step
from torch import Tensor, nn

from mmpatchmix.models.patchmix import PatchMix
from mmpatchmix.registry import MODELS


def make_batch(num_images: int, num_local: int, size: int = 224, local_size: int = 96) -> dict:
    """Return random crops as the workers would collate them."""
    shapes = dict.fromkeys(('view_1', 'view_2'), (num_images, 3, size, size))
    if num_local:
        shapes['local_views'] = (num_images, num_local, 3, local_size, local_size)
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

    def step(self, inputs: dict, autocast: Callable, are_crops: bool = False) -> dict:
        """Train on the preprocessor's outputs, or on the workers' crops; return the log values."""
        self.model.update_momentum_encoder(MOMENTUM)
        with autocast():
            if are_crops:
                inputs = self.model.data_preprocessor(inputs, training=True)['inputs']
            losses = self.model(inputs, mode='loss')
        loss, log_vars = self.model.parse_losses(losses)
        self.optimizer.update_params(loss)
        return log_vars


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
    others, own, size = {}, None, None
    if args.table == 'peers':
        others, own, size = build_peers(args, plain, autocast)
        naive = NaivePatchMix(OurStep(model=args.model).model)
        candidates['naive PatchMix'] = lambda: naive.step(inputs, autocast)
        candidates |= others
    torch.set_default_device(None)  # in training, too, the host makes its tensors on the host
    seconds = measure(candidates, args.repeats)
    ours_floor, plain_floor = (seconds[name] for name in list(candidates)[:2])
    rows = []
    for name, value in seconds.items():
        floor, num = (seconds[own], size) if name in others else (plain_floor, args.batch)
        rows.append((name, num, value, value / ours_floor, value / floor))
    return make_rows(('step', 'images of the batch', 's', 'of our floor', 'of own floor'), rows)


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


def main() -> None:
    import step_tables

    tables = {
        'peers': ('training step', compare_peers),
        'ours': ('training step', compare_peers),
        'parts': ('parts of a step', step_tables.compare_parts),
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
