"""Train Mask R-CNN on 50 annotated scenes of digits, with and without a pre-trained backbone.

    python examples/demo_coco.py
    python examples/demo_coco.py --checkpoint work_dirs/digits/epoch_80.pth

The backbone is pre-trained on 2,000 scenes without their annotations.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from digit_scenes import write_digit_scenes, write_ink_crops
from rich.console import Console
from rich.table import Table

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.cli import show
from mmpatchmix.cli.verb import exit_on_user_error
from mmpatchmix.report.run_record import read_scalars

ROOT = Path(__file__).parents[1]
PRETRAINING = ROOT / 'configs/patchmix_vit-digits_scenes.py'
DETECTOR = ROOT / 'configs/coco/mask-rcnn_vit-digits_scenes.py'
NUM_UNLABELLED, NUM_ANNOTATED = 2000, 50
METRICS = {
    'box AP': 'coco/bbox_mAP',
    'box AP50': 'coco/bbox_mAP_50',
    'mask AP': 'coco/segm_mAP',
    'mask AP50': 'coco/segm_mAP_50',
}


def train(config: Path, work_dir: Path, data_root: Path, *options: str) -> str:
    """Run ``tools/train.py`` and return the last checkpoint."""
    paths = [f'--work-dir={work_dir}', f'--data-root={data_root}']
    tool = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--overwrite']
    subprocess.run([*tool, *paths, *options], check=True)
    return str(find_good_checkpoint(work_dir)[0])


def pretrain(work_dir: Path) -> str:
    """Pre-train on pieces of ink of unannotated scenes and return the checkpoint."""
    scenes, crops = work_dir / 'unlabelled', work_dir / 'crops'
    print(f'writing {NUM_UNLABELLED:,} scenes to {scenes}; their annotations are not used')
    write_digit_scenes(scenes, num_train=NUM_UNLABELLED, num_val=0)
    count = write_ink_crops(scenes / 'train', crops)
    print(f'pre-training on {count:,} pieces of ink of them, in {crops}', flush=True)
    return train(PRETRAINING, work_dir / 'pretraining', crops)


def main() -> None:
    """Train both detectors on generated scenes, print the table and draw detections."""
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
    table = Table('100 validation scenes', *METRICS)
    detectors = []
    starts = {'pretrained': ('PatchMix backbone', backbone), 'random': ('random weights', None)}
    for folder, (name, start) in starts.items():
        print(f'\nMask R-CNN from {start or name}', flush=True)
        options = ['--cfg-options', f'model.backbone.init_cfg.checkpoint={start}']
        detectors.append(train(DETECTOR, args.work_dir / folder, data_root, *options))
        metrics = read_scalars(args.work_dir / folder)[1][-1]
        table.add_row(name, *(f'{100 * metrics[key]:.1f}' for key in METRICS.values()))
    figure = args.work_dir / 'detections.png'
    folder = args.work_dir / 'pretrained/show'
    paths = [f'--data-root={data_root}', f'--out={figure}', f'--work-dir={folder}']
    show.main(['detections', str(DETECTOR), detectors[0], *paths])
    Console().print(table)
    print(f'backbone    {backbone} (--checkpoint uses it again)')
    print(f'checkpoint  {detectors[0]}')
    print(f'figure      {figure}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
