"""Train UPerNet on 50 annotated scenes of digits, with and without a pre-trained backbone.

    python examples/demo_ade20k.py
    python examples/demo_ade20k.py --checkpoint work_dirs/digit_scenes/pretraining/epoch_25.pth

The backbone is that of demo_coco.py. Each network is trained with three seeds.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from demo_coco import NUM_ANNOTATED, ROOT, pretrain, train
from digit_scenes import write_digit_scenes
from rich.console import Console
from rich.table import Table

from mmpatchmix.cli.verb import exit_on_user_error
from mmpatchmix.report.run_record import read_scalars

SEGMENTER = ROOT / 'configs/ade20k/upernet_vit-digits_scenes.py'
SEEDS = range(3)


def main() -> None:
    """Train all networks on generated scenes and print the mIoU of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--checkpoint', help='use this checkpoint instead of pre-training')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digit_scenes'))
    args = parser.parse_args()
    backbone = args.checkpoint or pretrain(args.work_dir)
    data_root = args.work_dir / 'data'
    print(f'\nwriting {NUM_ANNOTATED} training and 100 validation scenes to {data_root}')
    write_digit_scenes(data_root, num_train=NUM_ANNOTATED)
    table = Table('mIoU on 100 validation scenes, %', *(f'seed {seed}' for seed in SEEDS), 'mean')
    for name, start in {'PatchMix backbone': backbone, 'random weights': None}.items():
        found = []
        for seed in SEEDS:
            print(f'\nUPerNet from {start or name}, seed {seed}', flush=True)
            folder = args.work_dir / f'segmentation-{"pretrained" if start else "random"}-{seed}'
            option = f'model.backbone.init_cfg.checkpoint={start}'
            train(SEGMENTER, folder, data_root, f'--seed={seed}', '--cfg-options', option)
            found.append(read_scalars(folder)[1][-1]['mIoU'])
        spread = f'{mean(found):.1f} ± {stdev(found):.1f}'
        table.add_row(name, *(f'{value:.1f}' for value in found), spread)
    Console().print(table)
    print(f'backbone    {backbone} (--checkpoint uses it again)')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
