"""A training step beside that of the published code, which its license keeps out of here.

    git clone https://github.com/visresearch/patchmix /tmp/published
    python benchmarks/published.py --code /tmp/published --crops 2 --precision fp32
    python benchmarks/published.py --code /tmp/published --crops 10 --precision bf16

ViT-S/16 as both recipes have it (12 heads, drop path, projector and predictor of 4096). A step
begins with normalised views on the device and ends with new weights: momentum update, mixing,
losses, backward, AdamW. Left out: schedules, logging, the gradient scaler.

timm decides how the published ViT attends: today by torch's fused attention, as it was written by
plain products. Both are measured, and "of theirs" divides by the quicker one. Without a GPU its
`.cuda()` is made to do nothing. Goal: 0.9 of theirs.
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from harness import choose_precision, keep_memory_as_training_does, measure, parse_args, report
from mmengine.logging import MMLogger
from step import MOMENTUM, OurStep
from torch import Tensor, distributed

TEMPERATURE = 0.2
VIT_S = dict(patch_size=16, img_size=224, num_classes=256, embed_dim=384, depth=12, num_heads=12)


def import_published(folder: str) -> SimpleNamespace:
    """Import the parts of a step from a clone of the published repository."""
    if not (Path(folder) / 'module/mix.py').is_file():
        sys.exit(f'--code {folder!r} is no clone of https://github.com/visresearch/patchmix.')
    sys.path.insert(0, folder)
    warnings.filterwarnings('ignore', category=FutureWarning, module='timm')
    from module.frame.contrast_momentum import ContrastMomentum_ViT
    from module.loss import MultiTempContrastiveLoss
    from module.mix import PatchMixer
    from module.vits import ViT

    if not torch.cuda.is_available():
        Tensor.cuda = lambda self, *args, **kwargs: self
        PatchMixer._one_hot.__defaults__ = (*PatchMixer._one_hot.__defaults__[:2], 'cpu')
    return SimpleNamespace(
        frame=ContrastMomentum_ViT, criterion=MultiTempContrastiveLoss(), mixer=PatchMixer, vit=ViT
    )


def build_published(theirs: SimpleNamespace, is_fused: bool, batch: int) -> Callable:
    """Return a step of the published code, in the order of its ``main_pretrain.py``."""
    query, key = theirs.vit(drop_path_rate=0.1, **VIT_S), theirs.vit(**VIT_S)
    model = theirs.frame(query, key, 3, 2, 256, 4096).train()
    for block in [*query.blocks, *key.blocks]:
        block.attn.fused_attn = is_fused
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [dict(params=matrices), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, weight_decay=0.04)
    mix = theirs.mixer(num_classes=batch, mix_s=16, mix_p=1.0, mix_n=2, smoothing=0.0)
    keep = theirs.mixer(num_classes=batch, mix_s=16, mix_p=0.0, mix_n=1)
    contrast = partial(theirs.criterion, temperature=TEMPERATURE)

    def step(views: dict[str, Tensor], autocast: Callable) -> None:
        model.update_momentum_encoder(MOMENTUM)
        numbers = torch.arange(batch).to(views['view_1'].device)
        (mixed_1, to_source, to_mix), (mixed_2, *_) = (
            mix(views[name], numbers) for name in ('view_1', 'view_2')
        )
        _, one, _ = keep(views['view_1'], numbers)
        with autocast():
            q_1, k_1 = model(views['view_1'])
            k_2 = model(views['view_2'], q=False)[1]
            k_mixed = model(mixed_1, q=False)[1]
            q_mixed = model(mixed_2, k=False)[0]
            loss = contrast(q_1, k_2, one) + contrast(q_mixed, k_1, to_source) / 2
            loss = loss + contrast(q_mixed, k_mixed, to_mix) / 2
            if 'local_views' in views:
                crops = views['local_views']
                mixed = torch.cat([mix(crop, numbers)[0] for crop in crops])
                for images, target in ((crops.flatten(0, 1), one), (mixed, to_source)):
                    for q in model(images, k=False)[0].split(batch):
                        terms = contrast(q, k_1, target) + contrast(q, k_2, target)
                        loss = loss + terms / len(crops)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step() -> Callable:
    ours = OurStep()

    def step(views: dict[str, Tensor], autocast: Callable) -> None:
        mixed = ours.model.data_preprocessor.mix(views)
        ours.step(views | mixed, autocast)

    return step


def main() -> None:
    args = parse_args(__doc__, code='', batch=8, crops=2, precision='fp32')
    theirs = import_published(args.code)
    args.precision = choose_precision(args.precision)
    keep_memory_as_training_does()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    # Keys are gathered there even from one process.
    backend = 'gloo' if device == 'cpu' else 'nccl'
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)

    def autocast():
        if args.precision == 'fp32':
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    with torch.device(device):
        steps = {
            'ours': our_step(),
            'published, fused attention': build_published(theirs, True, args.batch),
            'published, plain attention': build_published(theirs, False, args.batch),
        }
        views = {name: torch.randn(args.batch, 3, 224, 224) for name in ('view_1', 'view_2')}
        if args.crops > 2:
            views['local_views'] = torch.randn(args.crops - 2, args.batch, 3, 96, 96)
    candidates = {name: partial(step, views, autocast) for name, step in steps.items()}
    seconds = measure(candidates, args.repeats)
    quickest = min(value for name, value in seconds.items() if name != 'ours')
    rows = [
        {'step': name, 's': value, 'of theirs': value / quickest} for name, value in seconds.items()
    ]
    settings = dict(batch=args.batch, crops=args.crops, precision=args.precision)
    report('a step beside the published code', rows, repeats=args.repeats, **settings)
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
