"""Continue from a checkpoint on few images: accuracy before and after, and the guard's warnings.

    python benchmarks/continuing.py --data-root PATH

A ViT trained with labels on the six animals of CIFAR-10 is continued on 500 or 2,000 images of its
four vehicles, at 1, 10 and 100 times the recipe's rate. PATH holds train/CLASS/*.jpg and
test/CLASS/*.jpg. Each run appends a line to benchmarks/results/continuing.jsonl; present runs are
skipped. docs/continue.md shows the results.
"""

import json
import re
import time
from pathlib import Path

from harness import make_parser
from mmengine.config import Config
from mmengine.hooks import Hook
from runs import HERE, append_result, build_quiet_runner, digest_config, read_results

from mmpatchmix.cli.arguments import set_data_root, set_epochs, set_initial_weights
from mmpatchmix.evaluation.features import extract_features
from mmpatchmix.evaluation.rank_me import nearest_others, rank_me, share_kept

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
    """Train the checkpoint to continue from, unless it exists."""
    path = WORK / 'source/epoch_6.pth'
    if not path.is_file():
        cfg = Config.fromfile(HERE / 'configs/continue_source.py')
        cfg.work_dir = str(path.parent)
        build_quiet_runner(cfg).train()
    return path


class EvaluationHook(Hook):
    """Keep the figures of each evaluation."""

    def __init__(self) -> None:
        self.rows, self.near = [], None

    def after_val_epoch(self, runner, metrics=None):
        bank = extract_features(runner.model, runner.val_loop.bank_dataloader).features
        near = nearest_others(bank, 10)
        self.near = near if self.near is None else self.near
        knn = {name[4:]: value for name, value in metrics.items() if 'top1_k' in name}
        row = dict(epoch=runner.epoch, rank_me=rank_me(bank), knn=knn)
        self.rows.append(row | dict(kept=share_kept(self.near, near)))


def build_config(num: int, epochs: int, factor: float) -> Config:
    """Return the config of a run."""
    cfg = Config.fromfile(HERE / 'configs/continue_small.py')
    cfg.optim_wrapper.optimizer.lr = RATE * factor
    # As far as in the recipe's 50 epochs moves the momentum encoder, which is evaluated.
    cfg.default_hooks.momentum.momentum = 1 - 0.004 * 50 / epochs
    set_epochs(cfg, epochs)
    set_data_root(cfg, str(WORK / f'vehicles-{num}'))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.val_cfg.bank_dataloader):
        loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    cfg.work_dir = str(WORK / f'{num}-{factor}')
    return cfg


def run(cfg: Config, source: Path) -> dict:
    """Continue once; return the figures for the line of the results."""
    set_initial_weights(cfg, str(source))
    runner, hook = build_quiet_runner(cfg), EvaluationHook()
    runner.register_hook(hook)
    began = time.monotonic()
    runner.train()
    log = next(Path(runner.log_dir).glob('*.log')).read_text(encoding='utf-8')
    warned = [int(epoch) for epoch in re.findall(r'continue guard: after epoch (\d+)', log)]
    seconds = round(time.monotonic() - began)
    return dict(seconds=seconds, evaluations=hook.rows, warned=warned)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--only-source', action='store_true', help='train the checkpoint only')
    args = parser.parse_args()
    lay_out(args.data_root, 'animals', ANIMALS, 12_000, 600)
    for num in (500, 2000):
        lay_out(args.data_root, f'vehicles-{num}', VEHICLES, num, 1_000)
    source = make_source()
    done = {line['config'] for line in read_results(RESULTS)}
    for num, epochs, factor in [] if args.only_source else RUNS:
        cfg = build_config(num, epochs, factor)
        digest = digest_config(cfg)
        if digest not in done:
            line = dict(row=f'{num}-{factor}', seed=0, config=digest, images=num, epochs=epochs)
            line |= dict(lr=RATE * factor) | run(cfg, source)
            append_result(RESULTS, line)
            print(json.dumps(line), flush=True)


if __name__ == '__main__':
    main()
