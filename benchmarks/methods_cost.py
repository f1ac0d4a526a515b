"""What a training step of each row of methods.py takes.

    python benchmarks/methods_cost.py --threads 1

Crops of noise in the recipe's batch, from augmentation to the optimizer; rows take turns.
"""

import torch
from harness import keep_memory_as_training_does, measure, parse_args, report
from methods import ROWS
from methods_run import build_config, count_views
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from mmpatchmix.registry import MODELS


def build_step(cfg):
    """Return a function that takes a training step."""
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    crops = cfg.train_dataloader.dataset.pipeline[-2]
    num, size = cfg.train_dataloader.batch_size, crops.global_size
    shapes = dict.fromkeys(('view_1', 'view_2'), (num, 3, size, size))
    if num_local := crops.get('num_local', 0):
        shapes['local_views'] = (num, num_local, 3, crops.local_size, crops.local_size)
    inputs = {n: torch.randint(0, 256, shape, dtype=torch.uint8) for n, shape in shapes.items()}

    def step():
        model.update_momentum_encoder(0.99)
        model.train_step({'inputs': inputs, 'data_samples': None}, wrapper)

    return step


def main() -> None:
    args = parse_args(__doc__, repeats=7)
    keep_memory_as_training_does()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    torch.manual_seed(0)
    # Tuned and long runs take the steps of others.
    names = [row for row in ROWS if not row.startswith(('tune-', 'long-')) and row != 'untrained']
    configs = {row: build_config(row, ROWS[row], 0, 1)[0] for row in names}
    seconds = measure({row: build_step(cfg) for row, cfg in configs.items()}, args.repeats)
    rows = [
        {
            'row': row,
            'views encoded per image': count_views(configs[row]),
            's': value,
            'of mocov3': value / seconds['mocov3'],
        }
        for row, value in seconds.items()
    ]
    batch = configs['mocov3'].train_dataloader.batch_size
    report('a step of each method', rows, repeats=args.repeats, batch=batch)


if __name__ == '__main__':
    main()
