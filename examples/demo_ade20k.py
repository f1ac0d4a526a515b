"""Train UPerNet on 200 labelled scenes of a digit, with and without a pre-trained backbone.

    python examples/demo_ade20k.py
    python examples/demo_ade20k.py --checkpoint work_dirs/segmentation/pretraining/epoch_60.pth

The backbone is pre-trained on 2,000 scenes, without labels. Each network is trained with
three seeds, both networks of a seed side by side.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, stdev

from demo_coco import PRETRAINING, ROOT, finish, start, train_both
from digit_scenes import write_digit_scenes
from rich.console import Console
from rich.table import Table

from mmpatchmix.cli.verb import exit_on_user_error
from mmpatchmix.report.run_record import read_scalars

SEGMENTER = ROOT / 'configs/ade20k/upernet_vit-digits_scenes.py'
NUM_UNLABELLED, NUM_LABELLED, NUM_VAL = 2000, 200, 200
SCENES = dict(image_size=32, num_digits=(1, 1), digit_size=(20, 28))
NUM_EPOCHS = 60  # of pre-training; the recipe has 25
SEEDS = range(3)


def pretrain(work_dir: Path) -> str:
    """Pre-train on scenes and return the checkpoint."""
    scenes, folder = work_dir / 'unlabelled', work_dir / 'pretraining'
    print(f'pre-training on {NUM_UNLABELLED:,} scenes without labels, in {scenes}', flush=True)
    write_digit_scenes(scenes, num_train=NUM_UNLABELLED, num_val=0, **SCENES)
    epochs = f'--epochs={NUM_EPOCHS}'
    return finish(start(PRETRAINING, folder, scenes / 'train', epochs, threads=2), folder)


def main() -> None:
    """Train all networks on generated scenes and print the mIoU of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--checkpoint', help='use this checkpoint instead of pre-training')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/segmentation'))
    args = parser.parse_args()
    began, data_root = time.monotonic(), args.work_dir / 'data'
    backbone = args.checkpoint or pretrain(args.work_dir)
    print(f'\nwriting {NUM_LABELLED} training and {NUM_VAL} validation scenes to {data_root}')
    write_digit_scenes(data_root, num_train=NUM_LABELLED, num_val=NUM_VAL, **SCENES)
    found = {'pretrained': [], 'random': []}
    for seed in SEEDS:
        folders = {name: args.work_dir / f'{name}-{seed}' for name in found}
        train_both(SEGMENTER, backbone, folders, data_root, f'--seed={seed}')
        for name, values in found.items():
            values.append(read_scalars(folders[name])[1][-1]['mIoU'])
    table = Table(
        f'mIoU on {NUM_VAL} validation scenes, %', *(f'seed {seed}' for seed in SEEDS), 'mean'
    )
    for title, values in zip(('PatchMix backbone', 'random weights'), found.values(), strict=True):
        spread = f'{mean(values):.1f} ± {stdev(values):.1f}'
        table.add_row(title, *(f'{value:.1f}' for value in values), spread)
    Console().print(table)
    print(f'backbone    {backbone} (--checkpoint uses it again)')
    print(f'all of this took {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
