"""Cost of a step by model, crops, batch and ranks, by formula, for docs/scaling.md.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --ranks 512 --batch 32

Parameters, operations and bytes are counted on the recipes' own models, built without memory;
speeds of devices and networks are options, assumed and not measured.
"""

import functools
from argparse import Namespace

import torch
from harness import CONFIGS, parse_args, report
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatchmix.models.patchmix import PatchMix
from mmpatchmix.registry import MODELS

PLANNED = ['vit-s_in1k', 'vit-b_in1k', 'vit-l_in1k_fsdp', 'vit-h_in1k_fsdp']
GLOBAL_SIDE, LOCAL_SIDE = 224, 96
NUM_KEYS = 3  # views 1 and 2 and mixed view 1
GB = 1e9


@functools.cache
def build(name: str) -> PatchMix:
    """Build the model of a recipe without memory for its weights."""
    cfg = Config.fromfile(CONFIGS / f'patchmix_{name}.py')
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def count_tokens(model: PatchMix, side: int) -> int:
    return (side // model.backbone.patch_size) ** 2 + 1


def block_flops(model: PatchMix, side: int) -> int:
    """Operations of an image in all blocks: matrix products only, a product counting twice.

    A token has 8 D^2 + 4 D F in the linear layers of a block and 4 T D in its attention. The last
    block has keys and values, 4 D^2, for all tokens, and the rest for one token.
    """
    vit = model.backbone
    width, wide = vit.embed_dims, vit.layers[0].ffn.layers[0][0].out_features
    tokens = count_tokens(model, side)
    linear = 8 * width**2 + 4 * width * wide
    block = tokens * (linear + 4 * tokens * width)
    last = 4 * tokens * width * (width + 1) + linear - 4 * width**2
    return (vit.num_layers - 1) * block + last


def recomputed_flops(model: PatchMix, side: int) -> int:
    """Operations of recomputing all blocks, without their last linear layers."""
    vit = model.backbone
    layer = 2 * vit.embed_dims * vit.layers[0].ffn.layers[0][0].out_features
    skipped = (vit.num_layers - 1) * count_tokens(model, side) + 1
    return block_flops(model, side) - skipped * layer


def head_flops(*modules: nn.Module) -> int:
    """Operations of a row in the linear layers of projector or predictor."""
    return 2 * sum(p.numel() for each in modules for p in each.parameters() if p.ndim > 1)


def step_flops(
    model: PatchMix, num_local: int, global_side: int = GLOBAL_SIDE, local_side: int = LOCAL_SIDE
) -> int:
    """Operations of a step per image, without the contrasts; images need no gradient."""

    projection = model.backbone.patch_embed.projection.weight.numel()
    views = {global_side: 2, local_side: 2 * num_local}
    embed = {side: 2 * (count_tokens(model, side) - 1) * projection for side in views}
    key = block_flops(model, global_side) + embed[global_side] + head_flops(model.neck)
    total = NUM_KEYS * key
    for side, number in views.items():
        query = 3 * block_flops(model, side) + 2 * embed[side]
        query += recomputed_flops(model, side) if model.backbone.with_cp else 0
        total += number * (query + 3 * head_flops(model.neck, model.head.predictor))
    return total


def num_logits(num_local: int, batch: int, num_ranks: int) -> int:
    """Logits of a rank: three contrasts of its images, and four of all its local crops."""
    return (3 + 4 * num_local) * batch * batch * num_ranks


def contrast_flops(model: PatchMix, logits: int) -> int:
    """Operations of the contrasts and of their backward, which keys do not need."""
    return 2 * 2 * logits * model.head.predictor.fc1.out_features


def activation_bytes(model: PatchMix, num_local: int) -> int:
    """Bytes that an image's queries keep for the backward, under bfloat16 autocast; an estimate.

    A token of D channels keeps in a block two inputs of norms in float32 and, in bfloat16, their
    two results, query, key, value, the attended values, and 4 D before and after the activation:
    36 D bytes. Recomputed blocks keep their input.
    """
    vit, views = model.backbone, ((GLOBAL_SIDE, 2), (LOCAL_SIDE, 2 * num_local))
    tokens = sum(number * count_tokens(model, side) for side, number in views)
    return tokens * vit.num_layers * vit.embed_dims * (4 if vit.with_cp else 36)


def exchanged_bytes(model: PatchMix) -> dict[str, float]:
    """Bytes in float32 that a rank of many sends in a step (of W: (W - 1) / W of it).

    FSDP gathers blocks for keys, two calls of queries and their backwards; projector and predictor
    for each view group.
    """
    blocks = count(*model.backbone.layers)
    rest = count(model.backbone) - blocks
    neck, predictor = count(model.neck), count(model.head)
    gathered = 5 * blocks + (4 + 4 + 3) * neck + (4 + 4) * predictor + 4 * rest
    scattered = 2 * blocks + 4 * neck + 4 * predictor + rest
    ddp = 2 * 4 * (blocks + rest + neck + predictor)
    return {'DDP': ddp, 'FSDP': 4 * (gathered + scattered)}


def num_syncs(model: PatchMix) -> int:
    """Collectives of synchronised BatchNorm in a step: four groups of queries, three of keys."""
    neck, head = (
        sum(isinstance(layer, _BatchNorm) for layer in module.modules())
        for module in (model.neck, model.head)
    )
    return (8 + NUM_KEYS) * neck + 8 * head


def plan_step(name: str, num_local: int, batch: int, num_ranks: int, args: Namespace) -> dict:
    """Return a row: the computation, traffic and memory of a rank."""
    model = build(name)
    logits = num_logits(num_local, batch, num_ranks)
    flops = batch * step_flops(model, num_local) + contrast_flops(model, logits)
    trained = count(model.backbone, model.neck, model.head)
    momentum = count(model.momentum_encoder)
    seconds = flops / args.teraflops / 1e12
    row = {'model': name.split('_')[0], 'crops': f'2+{num_local}', 'ranks': num_ranks}
    row |= {'images/rank': batch, 'compute (s)': seconds}
    for kind, num_bytes in exchanged_bytes(model).items():
        sent = (1 - 1 / num_ranks) * num_bytes / GB
        row |= {f'{kind} (GB)': sent, f'{kind} (s)': sent / args.network}
    return row | {
        'BN (s)': num_syncs(model) * args.latency / 1e6,
        'keys (GB)': 2 * NUM_KEYS * 4 * batch * num_ranks * 256 / GB,
        'logits (GB)': 4 * logits / GB,
        'activations (GB)': batch * activation_bytes(model, num_local) / GB,
        'images/s': batch * num_ranks / seconds,
        'weights (GB)': (16 * trained + 4 * momentum) / GB,
        'checkpoint (GB)': (12 * trained + 4 * momentum) / GB,
    }


def main() -> None:
    args = parse_args(__doc__, ranks=1000, batch=16, teraflops=200.0, network=25.0, latency=200.0)
    sizes = [(128, 8), (64, 64), (args.batch, args.ranks)]
    rows = [plan_step(name, 8, *size, args) for name in PLANNED for size in sizes]
    assumed = {key: getattr(args, key) for key in ('teraflops', 'network', 'latency')}
    report('a step, on paper', rows, **assumed)


if __name__ == '__main__':
    main()
