"""Compare objectives: one small ViT, equal data, augmentation, schedule and number of views.

    python benchmarks/methods.py --list
    python benchmarks/methods.py --data-root PATH --rows mocov3 patchmix-2 --seeds 0 1 2 --jobs 2
    python benchmarks/methods.py --cost         # time of a training step of each row, on noise

`num_mix=1` makes our loss exactly the symmetric loss of MoCo v3 at the same cost. PATH holds
train/CLASS/*.jpg and test/CLASS/*.jpg; without it CIFAR-10 is downloaded to data/cifar10. Each run
appends one line to benchmarks/results/methods.jsonl; lines with the same config are not run again.
"""

import methods_run
import torch
from harness import make_rows, measure, report, set_up
from mmengine.optim import build_optim_wrapper
from runs import HERE, parse_runs, run_all
from step import make_batch

from mmpatchmix.registry import MODELS


def change(**model) -> dict:
    """Return the changes of a row in the model; ``num_mix`` and others are the preprocessor's."""
    inner = {k: model.pop(k) for k in ('num_mix', 'patch_size', 'mixing') if k in model}
    return dict(model=model | (dict(data_preprocessor=inner) if inner else {}))


def local_crops(num_mix: int) -> dict:
    """Return a row with four local crops of 12 pixels."""
    sizes = dict(global_size=24, global_scale=(0.35, 1.0), num_local=4, local_size=12)
    crops = dict(type='mmpatchmix.MultiCrop', **sizes, local_scale=(0.05, 0.35))
    pipeline = [crops, dict(type='mmpatchmix.PackViews')]
    return change(num_mix=num_mix) | dict(train_dataloader=dict(dataset=dict(pipeline=pipeline)))


def tune(num_mix: int, lr: float = 2e-3, temperature: float = 0.2) -> dict:
    """Return a row of half the length that is evaluated on held-out training images."""
    head = dict(temperature=temperature)
    row = dict(epochs=2, optim_wrapper=dict(optimizer=dict(lr=lr)))
    return row | change(head=head, num_mix=num_mix)


ROWS = {
    'mocov3': change(num_mix=1),
    **{f'patchmix-{m}': change(num_mix=m) for m in (2, 3, 4, 6)},
    'patchmix-2-3-4': change(num_mix=[2, 3, 4]),
    'without-source': change(loss_weights=dict(source=0)),
    'without-mix-source': change(loss_weights=dict(mix_source=0)),
    'without-mix-mix': change(loss_weights=dict(mix_mix=0)),
    'mix-one-view': change(loss_weights=dict(mix_mix=0, mix_source=1.0)),
    **{f'mix-patch-{p}': change(patch_size=p) for p in (2, 8, 12)},
    'mixup': change(mixing=dict(type='mmpatchmix.mix_up')),
    'cutmix': change(mixing=dict(type='mmpatchmix.cut_mix')),
    'resizemix': change(mixing=dict(type='mmpatchmix.resize_mix')),
    'no-momentum-mocov3': change(momentum_encoder=None, num_mix=1),
    'no-momentum-patchmix-2': change(momentum_encoder=None),
    'long-mocov3': change(num_mix=1) | dict(epochs=20),
    'long-patchmix-2': change(num_mix=2) | dict(epochs=20),
    'local-mocov3': local_crops(1),
    'local-patchmix-2': local_crops(2),
    **{f'tune-lr{lr:g}-m{m}': tune(m, lr=lr) for lr in (1e-3, 2e-3, 4e-3) for m in (1, 2)},
    **{f'tune-temperature0.1-m{m}': tune(m, temperature=0.1) for m in (1, 2)},
    'untrained': {},
}


def build_step(cfg):
    """Return a training step of a config on crops of noise, from augmentation to the optimizer."""
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    crops, num = cfg.train_dataloader.dataset.pipeline[-2], cfg.train_dataloader.batch_size
    sizes = crops.global_size, crops.get('local_size', 0)
    batch = make_batch(num, crops.get('num_local', 0), *sizes)

    def step():
        model.update_momentum_encoder(0.99)
        model.train_step(batch, wrapper)

    return step


def measure_cost(repeats: int) -> None:
    """Print the table of `--cost`, of one thread; tuning and long rows take the steps of others."""
    set_up()
    torch.set_num_threads(1)
    names = [row for row in ROWS if not row.startswith(('tune-', 'long-', 'untrained'))]
    configs = {row: methods_run.build_config(row, ROWS[row], 0, 1)[0] for row in names}
    seconds = measure({row: build_step(cfg) for row, cfg in configs.items()}, repeats)
    rows = [
        (row, methods_run.count_views(configs[row]), value, value / seconds['mocov3'])
        for row, value in seconds.items()
    ]
    rows = make_rows(('row', 'views encoded per image', 's', 'of mocov3'), rows)
    report('a step of each method', rows, repeats=repeats, batch=128)


def main() -> None:
    parser = parse_runs(__doc__, list(ROWS), HERE / 'results/methods.jsonl')
    parser.add_argument('--data-root', help='folder with train/CLASS and test/CLASS')
    parser.add_argument('--shrink', type=int, default=1, help='divide the numbers of images')
    parser.add_argument('--cost', action='store_true', help='measure a training step of each row')
    parser.add_argument('--repeats', type=int, default=7, help='rounds of --cost')
    args = parser.parse_args()
    if args.cost:
        measure_cost(args.repeats)
        return
    run_all(
        __file__,
        args,
        build=lambda row, seed: methods_run.build_config(row, ROWS[row], seed, args.shrink),
        run=methods_run.run,
        prepare=lambda: methods_run.prepare_images(args.data_root),
        options=('--shrink', str(args.shrink)),
    )


if __name__ == '__main__':
    main()
