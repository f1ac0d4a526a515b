"""Cost of a step by model, crops, batch and ranks, by formula; and small steps on gloo ranks.

    python benchmarks/scaling.py --plan      # formulas, for docs/scaling.md
    python benchmarks/scaling.py --plan --ranks 512 --batch 32
    python benchmarks/scaling.py             # measures 1, 2 and 4 ranks on this machine

The plan counts parameters, operations and bytes on the recipes' own models, built without memory;
speeds of devices and networks are options, assumed and not measured. The measurement
trains the digits recipe's ViT: it shows the growth with the ranks, not the speed of a cluster.
"""

import functools
import json
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from pathlib import Path

import torch
from harness import MOMENTUM, parse_args, report
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatchmix.engine import PatchMixDDP, PatchMixFSDP
from mmpatchmix.engine.stop_requests import RankAgreement
from mmpatchmix.models.patchmix import PatchMix
from mmpatchmix.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs'
PLANNED = ['vit-s_in1k', 'vit-b_in1k', 'vit-l_in1k_fsdp', 'vit-h_in1k_fsdp']
GLOBAL_SIDE, LOCAL_SIDE = 224, 96
NUM_KEYS = 3  # views 1 and 2 and mixed view 1
GB = 1e9

# The plan


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
    """Operations of a step per image, without the contrasts.

    Queries are view 1, mixed view 2, and every local crop as it is and mixed. Their backward takes
    twice the forward, but images need no gradient. Keys take a forward.
    """

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


def print_plan(args: Namespace) -> None:
    sizes = [(128, 8), (64, 64), (args.batch, args.ranks)]
    rows = [plan_step(name, 8, *size, args) for name in PLANNED for size in sizes]
    rows += [plan_step(name, 0, 128, 8, args) for name in PLANNED]
    assumed = {key: getattr(args, key) for key in ('teraflops', 'network', 'latency')}
    report('a step, on paper', rows, **assumed)


# The measurement


def work(rank: int, num_ranks: int, folder: str, repeats: int, batch: int) -> None:
    """Train with both wrappers; rank 0 writes its rows."""
    torch.set_num_threads(1)
    MMLogger.get_instance('benchmark', log_level='ERROR')
    warnings.filterwarnings('ignore', 'FSDP2-wrapped module')  # features are not changed in place
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=num_ranks
    )
    rows = [train(wrapper, repeats, batch) for wrapper in (PatchMixDDP, PatchMixFSDP)]
    if rank == 0:
        Path(folder, 'rows.json').write_text(json.dumps(rows))
    distributed.destroy_process_group()


def timed(function, seconds: list[float]):
    """Return the function, which then also appends its seconds."""

    def run(*args):
        began = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - began)
        return result

    return run


def train(wrapper_class: type, repeats: int, batch: int) -> dict:
    """Return medians over some steps of a rank, and its bytes of weights and moments."""
    cfg = Config.fromfile(CONFIGS / 'patchmix_vit-digits.py')
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    wrapper = wrapper_class(model)
    optim_wrapper = build_optim_wrapper(wrapper, cfg.optim_wrapper)
    views = torch.randint(0, 256, (2, batch, 3, 32, 32), dtype=torch.uint8)
    data = {'inputs': {'view_1': views[0], 'view_2': views[1]}, 'data_samples': None}
    gathering, steps, agreeing = [], [], []
    model.head.gather = timed(model.head.gather, gathering)
    agree = timed(RankAgreement().agree, agreeing)  # as once a second, for stops and checkpoints

    def step() -> None:
        model.update_momentum_encoder(MOMENTUM)
        wrapper.train_step(data, optim_wrapper)

    for _ in range(2 + repeats):
        timed(step, steps)()
        distributed.barrier()
        agree(0, 0)
    held = [*model.parameters()]
    held += [v for s in optim_wrapper.optimizer.state.values() for v in s.values() if v.ndim]
    held = [value.to_local() if isinstance(value, DTensor) else value for value in held]
    seconds, gather, agreement = (statistics.median(e[2:]) for e in (steps, gathering, agreeing))
    num_ranks = distributed.get_world_size()
    return {
        'ranks': num_ranks,
        'images/rank': batch,
        'wrapper': wrapper_class.__name__,
        'step (ms)': 1e3 * seconds,
        'images/s': batch * num_ranks / seconds,
        'gathering keys (ms)': 1e3 * gather,
        'agreeing (ms)': 1e3 * agreement,
        'weights and moments (MB)': sum(value.nbytes for value in held) / 1e6,
    }


def measure_ranks(num_ranks: int, repeats: int, batch: int) -> list[dict]:
    """Start this number of ranks with one thread each and return the rows of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            work, (num_ranks, folder, repeats, batch), num_ranks, start_method='fork'
        )
        return json.loads(Path(folder, 'rows.json').read_text())


def main() -> None:
    args = parse_args(
        __doc__, plan=False, ranks=1000, batch=16, teraflops=200.0, network=25.0, latency=200.0
    )
    if args.plan:
        print_plan(args)
        return
    rows = [row for number in (1, 2, 4) for row in measure_ranks(number, args.repeats, args.batch)]
    report('steps of a toy ViT on gloo ranks, one thread each', rows)


if __name__ == '__main__':
    main()
