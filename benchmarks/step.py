"""A training step of ViT-S/16 beside the arithmetic that no step can avoid.

    python benchmarks/step.py --crops 2 --precision fp32
    python benchmarks/step.py --crops 10 --precision bf16
    python benchmarks/step.py --model vit-b --peers no --compile yes --batch 128 --precision bf16

Every step encodes some views with gradient (queries) and some without (keys). The *floor*
is nothing but that: forward and backward of as many images of the same sizes, as queries and
keys, through the same backbone at the same precision; no projector, loss, optimizer,
momentum encoder. It is measured with our backbone and with mmpretrain's plain ViT, whose
last block also computes the patch tokens that nobody asks for. On CPU cores all candidates
keep freed memory, as training does (`freed_memory.py` shows what that is worth).

- ours: momentum update, losses, backward and AdamW, from the preprocessor's outputs;
- ours + preprocessor: from the workers' uint8 crops, with all augmentation on this device;
- naive PatchMix: one encoder call per view, dense targets, parameter-by-parameter updates;
- MoCo v3 of mmpretrain and MoCo of lightly's parts with 2 crops: 2 queries and 2 keys per
  image, where PatchMix has 2 and 3: to encode as many images they take 5/4 of the batch;
- DINO of lightly's parts with 2 + 8 crops: 10 queries and 2 keys per image, where PatchMix
  has 2 + 16 and 3: as many images are encoded with 21/12 of the batch.

"of own floor" divides by mmpretrain's plain ViT on each step's own queries and keys, so it
compares what the codebases add to the encoders, whatever the method. Goal: ours takes at most
1.08 x the floor of our own backbone.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from harness import choose_precision, keep_memory_as_training_does, measure, parse_args, report
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmpretrain.models.backbones import VisionTransformer
from step_peers import NaivePatchMix, lightly_dino_step, lightly_moco_step, mocov3_step
from torch import Tensor, nn

from mmpatchmix.models.patchmix import PatchMix
from mmpatchmix.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs'
MOMENTUM = 0.996


def workers_batch(num_images: int, num_local: int) -> dict:
    """Draw random crops as the workers would collate them."""
    inputs = {
        name: torch.randint(0, 256, (num_images, 3, 224, 224), dtype=torch.uint8)
        for name in ('view_1', 'view_2')
    }
    if num_local:
        shape = (num_images, num_local, 3, 96, 96)
        inputs['local_views'] = torch.randint(0, 256, shape, dtype=torch.uint8)
    return {'inputs': inputs, 'data_samples': None}


def prepare(model: PatchMix, batch: dict) -> dict:
    """Make views and mixes as in training, where the host draws on the host."""
    with torch.device('cpu'):
        return model.data_preprocessor(batch, training=True)['inputs']


def read_config(model: str) -> Config:
    """Read the ImageNet recipe of ``vit-s`` or ``vit-b``."""
    return Config.fromfile(CONFIGS / f'patchmix_{model}_in1k.py')


def build_ours(compile: bool | dict, model: str = 'vit-s') -> tuple[PatchMix, object]:
    """Build the model of the ImageNet recipe, and its optimizer."""
    cfg = read_config(model)
    cfg.model.compile = compile
    model = MODELS.build(cfg.model)
    model.init_weights()
    # Not before has a data preprocessor heard of its device.
    model.to(torch.get_default_device()).train()
    cfg.optim_wrapper.enabled = False  # autocast comes from outside, for all alike
    return model, build_optim_wrapper(model, cfg.optim_wrapper)


class OurStep:
    """Do what the Runner does in an iteration."""

    def __init__(self, compile: bool | dict = False, model: str = 'vit-s') -> None:
        self.model, self.optimizer = build_ours(compile, model)

    def step(self, inputs: dict, autocast) -> None:
        self.model.update_momentum_encoder(MOMENTUM)
        with autocast():
            losses = self.model(inputs, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.optimizer.update_params(loss)

    def step_from_workers(self, batch: dict, autocast) -> None:
        self.model.update_momentum_encoder(MOMENTUM)
        with autocast():
            inputs = self.model.data_preprocessor(batch, training=True)['inputs']
            losses = self.model(inputs, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.optimizer.update_params(loss)


def floor(backbone: nn.Module, queries: list[Tensor], keys: list[Tensor], autocast):
    """Run queries forward and backward, and keys forward; a call per resolution."""

    def run():
        with autocast():
            for images in queries:
                backbone(images)[-1].sum().backward()
            with torch.no_grad():
                for images in keys:
                    backbone(images)
        backbone.zero_grad()

    return run


def build_peers(args, inputs: dict, plain: nn.Module, autocast) -> tuple[dict, dict, int]:
    """Build steps of others, floors of theirs by name, and the images of their batch."""
    naive, num_local = NaivePatchMix(build_ours(False, args.model)[0]), args.crops - 2
    peers = {'naive PatchMix': lambda: naive.step(inputs, autocast)}
    own_floor = {}
    if num_local:
        size = round(args.batch * (2 + 2 * num_local + 3) / (2 + num_local + 2))
        views = [torch.randn(size, 3, 224, 224) for _ in range(2)]
        crops = torch.randn(num_local, size, 3, 96, 96)
        dino = lightly_dino_step(views, crops)
        peers['DINO, lightly'] = lambda: dino(autocast)
        own_floor['DINO, lightly'] = 'floor of DINO'
        parts = [torch.cat(views), crops.flatten(0, 1)], [torch.cat(views)]
        peers['floor of DINO'] = floor(plain, *parts, autocast)
    else:
        size = round(args.batch * 5 / 4)
        views = [torch.randn(size, 3, 224, 224) for _ in range(2)]
        mocov3, moco = mocov3_step(views), lightly_moco_step(views)
        peers['MoCo v3, mmpretrain'] = lambda: mocov3(autocast)
        peers['MoCo, lightly'] = lambda: moco(autocast)
        own_floor |= dict.fromkeys(('MoCo v3, mmpretrain', 'MoCo, lightly'), 'floor of MoCo')
        parts = [torch.cat(views)], [torch.cat(views)]
        peers['floor of MoCo'] = floor(plain, *parts, autocast)
    return peers, own_floor, size


def main() -> None:
    args = parse_args(
        __doc__, batch=8, crops=2, precision='fp32', compile='no', model='vit-s', peers='yes'
    )
    args.precision = choose_precision(args.precision)
    keep_memory_as_training_does()
    MMLogger.get_instance('benchmark', log_level='WARNING')  # else each weight's start is told
    num_local = args.crops - 2
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    torch.set_default_device(device)

    def autocast():
        if args.precision == 'fp32':
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    ours = OurStep(model=args.model)
    batch = workers_batch(args.batch, num_local)
    inputs = prepare(ours.model, batch)
    arch = read_config(args.model).model.backbone
    arch.pop('type')
    plain = VisionTransformer(**arch)
    # (queries, keys) of 224 pixels and queries of 96 pixels, per image of the batch.
    pair = [torch.randn(args.batch, 3, 224, 224) for _ in range(2)]
    queries = [torch.cat(pair)]
    keys = [torch.cat([*pair, pair[0]])]
    if num_local:
        queries.append(torch.randn(2 * num_local * args.batch, 3, 96, 96))
    candidates = {
        'floor, our backbone': floor(ours.model.backbone, queries, keys, autocast),
        "floor, mmpretrain's ViT": floor(plain, queries, keys, autocast),
        'ours': lambda: ours.step(inputs, autocast),
        'ours + preprocessor': lambda: ours.step_from_workers(batch, autocast),
    }
    if args.compile != 'no':
        options = dict(mode='reduce-overhead') if args.compile == 'graphs' else True
        compiled = OurStep(compile=options, model=args.model)
        name = 'ours, CUDA graphs' if args.compile == 'graphs' else 'ours, compiled'
        candidates[name] = lambda: compiled.step(inputs, autocast)
    own_floor, size = {}, args.batch
    if args.peers == 'yes':
        others, own_floor, size = build_peers(args, inputs, plain, autocast)
        candidates |= others
    torch.set_default_device(None)  # in training, too, the host makes its tensors on the host
    seconds = measure(candidates, args.repeats)
    ours_floor, plain_floor = list(candidates)[:2]
    rows = [
        {
            'step': name,
            'images of the batch': size if name in own_floor or 'floor of' in name else args.batch,
            's': value,
            'of our floor': value / seconds[ours_floor],
            'of own floor': value / seconds[own_floor.get(name, plain_floor)],
        }
        for name, value in seconds.items()
    ]
    settings = dict(batch=args.batch, crops=args.crops, precision=args.precision, model=args.model)
    report(
        'training step', rows, repeats=args.repeats, goal='ours <= 1.08 of our floor', **settings
    )


if __name__ == '__main__':
    main()
