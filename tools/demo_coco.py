#!/usr/bin/env python
"""What pre-training buys a detector: Mask R-CNN on 50 annotated scenes of digits.

python tools/demo_coco.py
python tools/demo_coco.py --checkpoint work_dirs/digits/epoch_80.pth

A ViT learns by PatchMix from 2,000 scenes, whose annotations nobody reads. Then Mask R-CNN learns
from the annotations of 50 of them, from that backbone and from random weights.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.cli import show
from mmpatchmix.cli.verb import exit_on_user_error
from mmpatchmix.datasets.digits import write_digit_scenes, write_ink_crops

ROOT = Path(__file__).parent.parent
PRETRAINING = ROOT / 'configs/patchmix_vit-digits_scenes.py'
CONFIG = ROOT / 'configs/coco/mask-rcnn_vit-digits_scenes.py'
NUM_UNLABELLED, NUM_ANNOTATED = 2000, 50
METRICS = {
    'box AP': 'coco/bbox_mAP',
    'box AP50': 'coco/bbox_mAP_50',
    'mask AP': 'coco/segm_mAP',
    'mask AP50': 'coco/segm_mAP_50',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--checkpoint', help='pre-training checkpoint to take, instead of pre-training one'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digit_scenes'))
    return parser.parse_args()


def pretrain(work_dir: Path) -> str:
    """Pre-train on pieces of ink of scenes without annotations; return the checkpoint."""
    scenes, crops = work_dir / 'unlabelled', work_dir / 'crops'
    print(f'writing {NUM_UNLABELLED:,} scenes to {scenes}; nobody reads their annotations')
    write_digit_scenes(scenes, num_train=NUM_UNLABELLED, num_val=0)
    count = write_ink_crops(scenes / 'train', crops)
    print(f'pre-training on {count:,} pieces of ink of them, in {crops}', flush=True)
    run_training(PRETRAINING, work_dir / 'pretraining', crops)
    return str(find_good_checkpoint(work_dir / 'pretraining')[0])


def run_training(config: Path, work_dir: Path, data_root: Path, *options: str) -> None:
    """Train with ``tools/train.py``."""
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--overwrite']
    command += [f'--work-dir={work_dir}', f'--data-root={data_root}', *options]
    subprocess.run(command, check=True)


def train(work_dir: Path, data_root: Path, checkpoint: str | None) -> dict[str, float]:
    """Train a detector and return the metrics of its last evaluation."""
    option = f'model.backbone.checkpoint={checkpoint}'
    run_training(CONFIG, work_dir, data_root, '--cfg-options', option)
    records = [
        json.loads(line)
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    return [record for record in records if METRICS['mask AP'] in record][-1]


def draw(path: Path, work_dir: Path, data_root: Path) -> None:
    """Draw the first validation scenes, with annotated objects and with those found."""
    checkpoint = str(find_good_checkpoint(work_dir)[0])
    data = [f'--data-root={data_root}', f'--out={path}', f'--work-dir={work_dir / "show"}']
    show.main(['detections', str(CONFIG), checkpoint, *data])


def main() -> None:
    """Make the scenes, pre-train, train twice, print the table and draw."""
    args = parse_args()
    if args.checkpoint and not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f'there is no checkpoint {args.checkpoint}.')
    checkpoint = args.checkpoint or pretrain(args.work_dir)
    data_root = args.work_dir / 'data'
    print(f"\nwriting {NUM_ANNOTATED} scenes, and 100 to judge by, in COCO's format to {data_root}")
    write_digit_scenes(data_root, num_train=NUM_ANNOTATED)
    results = {}
    for name, folder, start in (
        ('PatchMix backbone', 'pretrained', checkpoint),
        ('random weights', 'random', None),
    ):
        print(f'\nMask R-CNN from {start or name}', flush=True)
        results[name] = train(args.work_dir / folder, data_root, start)
    figure = args.work_dir / 'detections.png'
    draw(figure, args.work_dir / 'pretrained', data_root)

    print(f'\n{"100 validation scenes":<22}' + ''.join(f'{name:>11}' for name in METRICS))
    for name, metrics in results.items():
        values = ''.join(f'{100 * metrics[key]:>11.1f}' for key in METRICS.values())
        print(f'{name:<22}{values}')
    print(f'\nbackbone    {checkpoint} (--checkpoint takes it again)')
    print(f'checkpoint  {find_good_checkpoint(args.work_dir / "pretrained")[0]}')
    print(f'figure      {figure}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
