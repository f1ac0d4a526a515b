"""One update of the momentum encoder (backbone and projector), beside the least it could take.

    python benchmarks/momentum.py

*flat lerp* is one `lerp_` over as many numbers in one tensor, the floor; *ours* is one multi-tensor
call; *loop* calls `lerp_` for each parameter; *CosineEMA* is mmpretrain's, which also copies the
BatchNorm buffers. Goal: ours takes at most 1.25 x the floor.
"""

import torch
from harness import CONFIGS, DEVICE, MOMENTUM, measure, parse_args, report
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmpretrain.models.utils import CosineEMA
from torch import nn

from mmpatchmix.models import MomentumEncoder
from mmpatchmix.registry import MODELS


def compare(config: str, repeats: int) -> dict:
    """Return a row: the times of the candidates for the networks of a config."""
    model = MODELS.build(Config.fromfile(CONFIGS / config).model)  # derives the neck's width
    query = nn.Sequential(model.backbone, model.neck).to(DEVICE)
    encoder = MomentumEncoder(*query)
    averaged = CosineEMA(query, momentum=1 - MOMENTUM)
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    flat_key, flat_query = torch.randn(2, num_parameters, device=DEVICE)

    @torch.no_grad()
    def loop() -> None:
        for key, parameter in zip(encoder.parameters(), query.parameters(), strict=True):
            key.lerp_(parameter, 1 - MOMENTUM)

    candidates = {
        'flat lerp': lambda: flat_key.lerp_(flat_query, 1 - MOMENTUM),
        'ours': lambda: encoder.update(*query, MOMENTUM),
        'loop': loop,
        'CosineEMA': lambda: averaged.update_parameters(query),
    }
    seconds = measure(candidates, repeats)
    num_tensors = len(list(encoder.parameters()))
    row = {'config': config, 'parameters (M)': num_parameters / 1e6, 'tensors': num_tensors}
    row |= {f'{name} (ms)': 1000 * value for name, value in seconds.items()}
    pairs = (('ours', 'flat lerp'), ('loop', 'flat lerp'), ('ours', 'CosineEMA'))
    return row | {f'{one} / {other}': seconds[one] / seconds[other] for one, other in pairs}


def main() -> None:
    args = parse_args(__doc__)
    # CosineEMA reads the length of the run from here.
    MessageHub.get_current_instance().update_info('max_iters', 375_000)
    configs = ('patchmix_vit-s_in1k.py', 'patchmix_vit-b_in1k.py')
    rows = [compare(config, args.repeats) for config in configs]
    report('momentum update', rows, repeats=args.repeats, goal='ours / flat lerp <= 1.25')


if __name__ == '__main__':
    main()
