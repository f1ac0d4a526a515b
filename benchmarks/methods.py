"""Which objective teaches most? One small ViT, equal data, augmentation, schedule and views.

    python benchmarks/methods.py --list
    python benchmarks/methods.py --data-root PATH --rows mocov3 patchmix-2 --seeds 0 1 2 --jobs 2

`num_mix=1` makes our loss exactly the symmetric loss of MoCo v3 at the same cost, so one code
path compares objectives and nothing else. PATH holds train/CLASS/*.jpg and test/CLASS/*.jpg;
without it CIFAR-10 is downloaded to data/cifar10. Pre-training sees 16,384 training images and no
label; 5,000 other training images judge the learning curves and the rates (`tune-...` rows),
the 10,000 test images the rest.

Each run appends one JSON line to benchmarks/results/methods.jsonl when it ends. What is there
already with the same config is skipped, so a cut command continues when it is given again.
benchmarks/evidence.py makes tables and figures of the file.
"""

from pathlib import Path

from runs import parse_runs, run_all

RESULTS = Path(__file__).parent / 'results/methods.jsonl'


def preprocessor(**settings) -> dict:
    """Return what a row changes in the data preprocessor."""
    return dict(model=dict(data_preprocessor=settings))


def weights(**terms: float) -> dict:
    """Return what a row changes in the weights of the loss."""
    return dict(model=dict(loss_weights=terms))


def local_crops(num_mix: int) -> dict:
    """Return a row with four local crops of 12 pixels."""
    pipeline = [
        dict(
            type='mmpatchmix.MultiCrop',
            global_size=24,
            global_scale=(0.35, 1.0),
            num_local=4,
            local_size=12,
            local_scale=(0.05, 0.35),
        ),
        dict(type='mmpatchmix.PackViews'),
    ]
    return preprocessor(num_mix=num_mix) | dict(
        train_dataloader=dict(dataset=dict(pipeline=pipeline))
    )


def tune(num_mix: int, lr: float = 2e-3, temperature: float = 0.2) -> dict:
    """Return a row of half the length that is judged on training images held out."""
    model = dict(head=dict(temperature=temperature), data_preprocessor=dict(num_mix=num_mix))
    return dict(epochs=2, model=model, optim_wrapper=dict(optimizer=dict(lr=lr)))


ROWS = {
    'mocov3': preprocessor(num_mix=1),
    **{f'patchmix-{m}': preprocessor(num_mix=m) for m in (2, 3, 4, 6)},
    'patchmix-2-3-4': preprocessor(num_mix=[2, 3, 4]),
    'without-source': weights(source=0),
    'without-mix-source': weights(mix_source=0),
    'without-mix-mix': weights(mix_mix=0),
    'mix-one-view': weights(mix_mix=0, mix_source=1.0),
    **{f'mix-patch-{p}': preprocessor(patch_size=p) for p in (2, 8, 12)},
    'mixup': preprocessor(mixing=dict(type='mmpatchmix.mix_up')),
    'cutmix': preprocessor(mixing=dict(type='mmpatchmix.cut_mix')),
    'resizemix': preprocessor(mixing=dict(type='mmpatchmix.resize_mix')),
    'no-momentum-mocov3': dict(
        model=dict(momentum_encoder=None, data_preprocessor=dict(num_mix=1))
    ),
    'no-momentum-patchmix-2': dict(model=dict(momentum_encoder=None)),
    'long-mocov3': preprocessor(num_mix=1) | dict(epochs=20),
    'long-patchmix-2': preprocessor(num_mix=2) | dict(epochs=20),
    'local-mocov3': local_crops(1),
    'local-patchmix-2': local_crops(2),
    **{f'tune-lr{lr:g}-m{m}': tune(m, lr=lr) for lr in (1e-3, 2e-3, 4e-3) for m in (1, 2)},
    **{f'tune-temperature0.1-m{m}': tune(m, temperature=0.1) for m in (1, 2)},
    'untrained': {},
}


def main() -> None:
    """Run what is not in the results yet."""
    parser = parse_runs(__doc__, list(ROWS), RESULTS)
    parser.add_argument('--data-root', help='folder with train/CLASS and test/CLASS')
    parser.add_argument('--shrink', type=int, default=1, help='of images, to try the script out')
    args = parser.parse_args()
    import methods_run

    if args.one:
        row = args.rows[0]
        methods_run.run(row, ROWS[row], args.seeds[0], args.shrink, args.results)
        return
    run_all(
        __file__,
        args,
        digest=lambda row, seed: methods_run.build_config(row, ROWS[row], seed, args.shrink)[1],
        prepare=lambda: methods_run.prepare_images(args.data_root),
        options=('--shrink', str(args.shrink)),
    )


if __name__ == '__main__':
    main()
