"""Make a checkpoint to continue from, for the examples of docs/own-images.md and docs/continue.md.

    python benchmarks/continuing.py --data-root PATH

A narrow ViT learns the six animals of CIFAR-10 with labels. PATH holds train/CLASS/*.jpg and
test/CLASS/*.jpg; work_dirs/continuing/ gets links to the images, and source/epoch_6.pth.
"""

from pathlib import Path

from harness import make_parser
from mmengine.config import Config
from runs import HERE, build_quiet_runner

WORK = Path('work_dirs/continuing')
ANIMALS = ('bird', 'cat', 'deer', 'dog', 'frog', 'horse')


def lay_out(data_root: Path, num_train: int = 12_000, num_val: int = 600) -> None:
    """Link the first images of each class into train and val folders."""
    for split, source, num in (('train', 'train', num_train), ('val', 'test', num_val)):
        for each in ANIMALS:
            folder = WORK / 'animals' / split / each
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted((data_root / source / each).iterdir())[: num // len(ANIMALS)]:
                if not (folder / file.name).exists():
                    (folder / file.name).symlink_to(file.resolve())


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--data-root', type=Path, required=True)
    lay_out(parser.parse_args().data_root)
    cfg = Config.fromfile(HERE / 'configs/continue_source.py')
    cfg.work_dir = str(WORK / 'source')
    if not (WORK / 'source/epoch_6.pth').is_file():
        build_quiet_runner(cfg).train()


if __name__ == '__main__':
    main()
