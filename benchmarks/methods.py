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

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / 'results/methods.jsonl'


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
    'local-mocov3': local_crops(1),
    'local-patchmix-2': local_crops(2),
    **{f'tune-lr{lr:g}-m{m}': tune(m, lr=lr) for lr in (1e-3, 2e-3, 4e-3) for m in (1, 2)},
    **{f'tune-temperature0.1-m{m}': tune(m, temperature=0.1) for m in (1, 2)},
    'untrained': {},
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--list', action='store_true', help='list the rows and what is done')
    parser.add_argument('--rows', nargs='+', choices=ROWS, metavar='ROW', default=list(ROWS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--jobs', type=int, default=1, help='runs side by side, one thread each')
    parser.add_argument('--data-root', help='folder with train/CLASS and test/CLASS')
    parser.add_argument('--shrink', type=int, default=1, help='of images, to try the script out')
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)  # in this process
    return parser.parse_args()


def main() -> None:
    """Run what is not in the results yet, rows of one seed after those of the seed before."""
    args = parse_args()
    if args.one:
        from methods_run import run

        run(args.rows[0], ROWS[args.rows[0]], args.seeds[0], args.shrink, args.results)
        return
    done = {(line['row'], line['seed'], line['config']) for line in read_results(args.results)}
    from methods_run import build_config, prepare_images

    wanted = [(row, seed) for seed in args.seeds for row in args.rows]
    todo = [
        (row, seed)
        for row, seed in wanted
        if (row, seed, build_config(row, ROWS[row], seed, args.shrink)[1]) not in done
    ]
    if args.list:
        for row, seed in wanted:
            print(f'  {row:<26} seed {seed}  {"to do" if (row, seed) in todo else "done"}')
        return
    print(f'{len(todo)} runs to do, {len(wanted) - len(todo)} done before')
    if todo:
        prepare_images(args.data_root)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(start, args, row, seed): (row, seed) for row, seed in todo}
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            row, seed = futures[future]
            future.result()
            left = (time.monotonic() - began) / number * (len(todo) - number)
            print(f'{row} seed {seed} done, {number} of {len(todo)}, ETA {left / 60:.0f} min')


def start(args: argparse.Namespace, row: str, seed: int) -> None:
    """Run one row in a process of its own; its output goes to a log file."""
    command = [sys.executable, __file__, '--one', '--rows', row, '--seeds', str(seed)]
    command += ['--shrink', str(args.shrink), '--results', str(args.results)]
    log = Path('work_dirs/methods') / f'{row}-{seed}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {} if args.jobs == 1 else dict(OMP_NUM_THREADS='1', OPENCV_NUM_THREADS='1')
    with log.open('w') as file:
        result = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | threads, check=False
        )
    if result.returncode:
        raise SystemExit(f'{row}, seed {seed} failed with {result.returncode}; see {log}')


def read_results(path: Path) -> list[dict]:
    """Read the lines of earlier runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


if __name__ == '__main__':
    main()
