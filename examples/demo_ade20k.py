"""Train UPerNet on 50 annotated scenes of digits, with and without a pre-trained backbone.

    python examples/demo_ade20k.py
    python examples/demo_ade20k.py --checkpoint work_dirs/digit_scenes/pretraining/epoch_10.pth

The backbone is that of demo_coco.py. Each network is trained with three seeds, both networks of a
seed side by side.
"""

import argparse
import subprocess
import time
from pathlib import Path
from statistics import mean, stdev

from demo_coco import NUM_ANNOTATED, ROOT, finish, pretrain, start
from digit_scenes import write_digit_scenes
from rich.console import Console
from rich.table import Table

from mmpatchmix.cli.verb import exit_on_user_error
from mmpatchmix.report.run_record import read_scalars

SEGMENTER = ROOT / 'configs/ade20k/upernet_vit-digits_scenes.py'
SEEDS = range(3)


def segment(checkpoint: str | None, folder: Path, seed: int, **more) -> subprocess.Popen:
    """Start UPerNet from a backbone, or from random weights."""
    options = f'--seed={seed}', '--cfg-options', f'model.backbone.init_cfg.checkpoint={checkpoint}'
    return start(SEGMENTER, folder, folder.parent / 'data', *options, **more)


def main() -> None:
    """Train all networks on generated scenes and print the mIoU of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--checkpoint', help='use this checkpoint instead of pre-training')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digit_scenes'))
    args = parser.parse_args()
    began, data_root = time.monotonic(), args.work_dir / 'data'
    backbone = args.checkpoint or pretrain(args.work_dir)
    print(f'\nwriting {NUM_ANNOTATED} training and 100 validation scenes to {data_root}')
    write_digit_scenes(data_root, num_train=NUM_ANNOTATED)
    found = {'pretrained': [], 'random': []}
    for seed in SEEDS:
        print(f'\nUPerNet from {backbone} and, in the background, from random weights', flush=True)
        folders = {name: args.work_dir / f'segmentation-{name}-{seed}' for name in found}
        with segment(None, folders['random'], seed, stdout=subprocess.DEVNULL) as random:
            run = segment(backbone, folders['pretrained'], seed)
            finish(run, folders['pretrained'])
            finish(random, folders['random'])
        for name, values in found.items():
            values.append(read_scalars(folders[name])[1][-1]['mIoU'])
    table = Table('mIoU on 100 validation scenes, %', *(f'seed {seed}' for seed in SEEDS), 'mean')
    for title, values in zip(('PatchMix backbone', 'random weights'), found.values(), strict=True):
        spread = f'{mean(values):.1f} ± {stdev(values):.1f}'
        table.add_row(title, *(f'{value:.1f}' for value in values), spread)
    Console().print(table)
    print(f'backbone    {backbone} (--checkpoint uses it again)')
    print(f'all of this took {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
