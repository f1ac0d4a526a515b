"""What does continuing give on few images, and does the guard speak when it should?

    python benchmarks/continuing.py --data-root PATH

A ViT that has learned the six animals of CIFAR-10 with labels (configs/continue_source.py) goes on
with 500 or 2,000 images of its four vehicles by the recipe for continuing, in 10 and 5 epochs: at
its rate, and at 10 and 100 times that. PATH holds train/CLASS/*.jpg and test/CLASS/*.jpg. Before
and after, kNN on 1,000 vehicles of the test split (bank: the images that were trained on), and what
the guard looks at where there are no labels: RankMe, and how many of the 10 nearest neighbours are
kept.

Each run appends a JSON line to benchmarks/results/continuing.jsonl; what is there is skipped.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from runs import append_result, digest_config, read_results

HERE = Path(__file__).parent
WORK = Path('work_dirs/continuing')
RESULTS = HERE / 'results/continuing.jsonl'
ANIMALS = ('bird', 'cat', 'deer', 'dog', 'frog', 'horse')
VEHICLES = ('airplane', 'automobile', 'ship', 'truck')
RATE = 2e-4
# Images, epochs, and factors of the rate.
RUNS = [(num, epochs, factor) for num, epochs in ((500, 10), (2000, 5)) for factor in (1, 10, 100)]


def lay_out(data_root: Path, name: str, classes: tuple, num_train: int, num_val: int) -> None:
    """Link the first images of each class into train and val folders."""
    for split, source, num in (('train', 'train', num_train), ('val', 'test', num_val)):
        for each in classes:
            folder = WORK / name / split / each
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted((data_root / source / each).iterdir())[: num // len(classes)]:
                if not (folder / file.name).exists():
                    (folder / file.name).symlink_to(file.resolve())


def make_source() -> Path:
    """Train what is continued from, if it is not there."""
    path = WORK / 'source/epoch_6.pth'
    if not path.is_file():
        config = HERE / 'configs/continue_source.py'
        command = [sys.executable, HERE.parent / 'tools/train.py', config]
        subprocess.run([*command, '--work-dir', path.parent, '--overwrite'], check=True)
    return path


def run(num: int, epochs: int, factor: float, source: Path, digest_only: bool = False):
    """Continue once; return the config's digest, or the line of the results."""
    from mmengine.config import Config
    from mmengine.hooks import Hook

    from mmpatchmix.cli.arguments import set_data_root, set_epochs, set_initial_weights
    from mmpatchmix.cli.verb import build_runner
    from mmpatchmix.evaluation.features import extract_features
    from mmpatchmix.evaluation.rank_me import nearest_others, rank_me, share_kept

    cfg = Config.fromfile(HERE / 'configs/continue_small.py')
    cfg.optim_wrapper.optimizer.lr = RATE * factor
    # The recipe has 50 epochs. The momentum encoder, which is judged, shall move as far in fewer.
    cfg.default_hooks.momentum.momentum = 1 - 0.004 * 50 / epochs
    set_epochs(cfg, epochs)
    set_data_root(cfg, str(WORK / f'vehicles-{num}'))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.val_cfg.bank_dataloader):
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    digest = digest_config(cfg)
    if digest_only:
        return digest
    set_initial_weights(cfg, str(source))
    cfg.work_dir = str(WORK / f'{num}-{factor}')
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    runner = build_runner(cfg)
    rows = []

    class Look(Hook):
        def after_val_epoch(self, runner, metrics=None):
            bank = extract_features(runner.model, runner.val_loop.bank_dataloader).features
            row = dict(epoch=runner.epoch, rank_me=rank_me(bank), near=nearest_others(bank, 10))
            row['knn'] = {name[4:]: value for name, value in metrics.items() if 'top1_k' in name}
            rows.append(row)

    runner.register_hook(Look())
    began = time.monotonic()
    runner.train()
    log = next(Path(runner.log_dir).glob('*.log')).read_text(encoding='utf-8')
    for row in rows:
        row['kept'] = share_kept(rows[0]['near'], row['near'])
    for row in rows:
        del row['near']
    return dict(
        row=f'{num}-{factor}', seed=0, config=digest, images=num, epochs=epochs,
        lr=RATE * factor, seconds=round(time.monotonic() - began), evaluations=rows,
        warned=[int(line.split('after epoch ')[1].split()[0]) for line in log.splitlines()
                if 'continue guard: after epoch' in line],
    )  # fmt: skip


def main() -> None:
    """Lay out, train the source, continue from it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument(
        '--only-source', action='store_true', help='make what is continued from, and stop'
    )
    args = parser.parse_args()
    lay_out(args.data_root, 'animals', ANIMALS, 12_000, 600)
    for num in (500, 2000):
        lay_out(args.data_root, f'vehicles-{num}', VEHICLES, num, 1_000)
    source = make_source()
    if args.only_source:
        return
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()
    done = {line['config'] for line in read_results(RESULTS)}
    for num, epochs, factor in RUNS:
        if run(num, epochs, factor, source, digest_only=True) in done:
            continue
        line = run(num, epochs, factor, source)
        append_result(RESULTS, line)
        print(json.dumps(line), flush=True)


if __name__ == '__main__':
    main()
