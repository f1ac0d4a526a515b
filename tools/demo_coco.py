#!/usr/bin/env python
"""Transfer the digits demo to detection: Mask R-CNN on scenes of digits, beside random weights.

python tools/demo_coco.py
python tools/demo_coco.py --checkpoint work_dirs/digits/epoch_80.pth
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.cli import show
from mmpatchmix.cli.errors import exit_on_user_error
from mmpatchmix.datasets.digit_scenes import write_digit_scenes

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / 'configs/coco/mask-rcnn_vit-digits_scenes.py'
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
        '--checkpoint', help='pre-training checkpoint; by default the last of work_dirs/digits'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digit_scenes'))
    return parser.parse_args()


def find_checkpoint(path: str | None) -> str:
    """Return the given checkpoint, or the demo's last one."""
    if path is None:
        folder = Path('work_dirs/digits')
        path = find_good_checkpoint(folder)[0] if folder.is_dir() else None
        if path is None:
            raise FileNotFoundError(
                'there is no pre-trained backbone in work_dirs/digits yet: run "make demo" first, '
                'or name a checkpoint with --checkpoint.'
            )
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}.')
    return str(path)


def train(work_dir: Path, data_root: Path, checkpoint: str | None) -> dict[str, float]:
    """Train with ``tools/train.py`` and return the metrics of its last evaluation."""
    subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools/train.py'),
            str(CONFIG),
            f'--work-dir={work_dir}',
            f'--data-root={data_root}',
            '--overwrite',
            '--cfg-options',
            f'model.backbone.checkpoint={checkpoint}',
        ],
        check=True,
    )
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
    """Make the scenes, train twice, print the table and draw."""
    args = parse_args()
    checkpoint = find_checkpoint(args.checkpoint)
    data_root = args.work_dir / 'data'
    print(f'writing scenes of digits in COCO format to {data_root}')
    write_digit_scenes(data_root)
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
    print(f'\ncheckpoint  {find_good_checkpoint(args.work_dir / "pretrained")[0]}')
    print(f'figure      {figure}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
