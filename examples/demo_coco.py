"""Train Mask R-CNN on 50 annotated scenes of digits, with and without a pre-trained backbone.

    python examples/demo_coco.py
    python examples/demo_coco.py --pretrain
    python examples/demo_coco.py --checkpoint work_dirs/digits/epoch_80.pth

The backbone was pre-trained on 2,000 scenes without annotations, of which these are the first 50;
--pretrain does so anew. Both detectors train side by side.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from mmpatchmix.checkpoints import read_backbone
from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from mmpatchmix.cli import show
from mmpatchmix.cli.verb import exit_on_user_error, quiet_stack

quiet_stack()  # before the packages are imported whose messages it removes

from digit_scenes import write_digit_scenes, write_ink_crops  # noqa: E402

from mmpatchmix.report.run_record import read_scalars  # noqa: E402

ROOT = Path(__file__).parents[1]
PRETRAINING = ROOT / 'configs/patchmix_vit-digits_scenes.py'
BACKBONE = ROOT / 'examples/vit-digits_scenes.safetensors'
DETECTOR = ROOT / 'configs/coco/mask-rcnn_vit-digits_scenes.py'
NUM_UNLABELLED, NUM_ANNOTATED = 2000, 50
METRICS = {
    'box AP': 'coco/bbox_mAP',
    'box AP50': 'coco/bbox_mAP_50',
    'mask AP': 'coco/segm_mAP',
    'mask AP50': 'coco/segm_mAP_50',
}


def start(
    config: Path, folder: Path, data_root: Path, *options: str, threads: int = 1, **more
) -> subprocess.Popen:
    """Start ``tools/train.py``; ``more`` is given to ``Popen``."""
    paths = [f'--work-dir={folder}', f'--data-root={data_root}']
    tool = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--overwrite']
    environment = os.environ | {'OMP_NUM_THREADS': f'{threads}'}
    return subprocess.Popen([*tool, *paths, *options], env=environment, **more)


def finish(run: subprocess.Popen, folder: Path) -> str:
    """Wait for a run and return its last checkpoint."""
    if run.wait():
        raise ValueError(f'training failed; see the log in {folder}.')
    return str(find_good_checkpoint(folder)[0])


def pretrain(work_dir: Path) -> Path:
    """Pre-train on pieces of ink of unannotated scenes; return the file of weights, float16."""
    scenes, crops, folder = (work_dir / name for name in ('unlabelled', 'crops', 'pretraining'))
    print(f'writing {NUM_UNLABELLED:,} scenes to {scenes}; their annotations are not used')
    write_digit_scenes(scenes, num_train=NUM_UNLABELLED, num_val=0)
    count = write_ink_crops(scenes / 'train', crops)
    print(f'pre-training on {count:,} pieces of ink of them, in {crops}', flush=True)
    checkpoint = finish(start(PRETRAINING, folder, crops, threads=2), folder)
    state = read_backbone(checkpoint, drop=['ln2']).state_dict  # a norm that no detector uses
    weights = {key: value.half() for key, value in state.items()}
    save_file(weights, work_dir / BACKBONE.name)
    return work_dir / BACKBONE.name


def train_both(
    config: Path, backbone: str | Path, folders: dict[str, Path], data_root: Path, *options: str
) -> str:
    """Train from a backbone and, on another core, from random weights.

    Return the checkpoint of the former. ``folders`` are those of 'pretrained' and 'random'.
    """

    def begin(name: str, checkpoint: str | Path | None, **more) -> subprocess.Popen:
        option = f'model.backbone.init_cfg.checkpoint={checkpoint}'
        return start(config, folders[name], data_root, *options, '--cfg-options', option, **more)

    print(f'\ntraining from {backbone}: {folders["pretrained"]}')
    print(f'and, in the background, from random weights: {folders["random"]}', flush=True)
    with begin('random', None, stdout=subprocess.DEVNULL) as random:
        checkpoint = finish(begin('pretrained', backbone), folders['pretrained'])
        finish(random, folders['random'])
    return checkpoint


def main() -> None:
    """Train both detectors on generated scenes, print the table and draw detections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    start_from = parser.add_mutually_exclusive_group()
    start_from.add_argument('--checkpoint', default=BACKBONE, help='use another backbone')
    start_from.add_argument(
        '--pretrain', action='store_true', help='pre-train the backbone anew (about 8 minutes)'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digit_scenes'))
    args = parser.parse_args()
    began, data_root = time.monotonic(), args.work_dir / 'data'
    print(f'writing {NUM_ANNOTATED} training and 100 validation scenes to {data_root}')
    write_digit_scenes(data_root, num_train=NUM_ANNOTATED)
    folders = {name: args.work_dir / name for name in ('random', 'pretrained')}
    backbone = pretrain(args.work_dir) if args.pretrain else args.checkpoint
    detector = train_both(DETECTOR, backbone, folders, data_root)
    table = Table('100 validation scenes', *METRICS)
    for title, name in {'PatchMix backbone': 'pretrained', 'random weights': 'random'}.items():
        metrics = read_scalars(folders[name])[1][-1]
        table.add_row(title, *(f'{100 * metrics[key]:.1f}' for key in METRICS.values()))
    figure = args.work_dir / 'detections.png'
    shown = folders['pretrained'] / 'show'
    paths = [f'--data-root={data_root}', f'--out={figure}', f'--work-dir={shown}']
    show.main(['detections', str(DETECTOR), detector, *paths])
    Console().print(table)
    print(f'backbone    {backbone}')
    print(f'checkpoint  {detector}')
    print(f'figure      {figure}')
    print(f'all of this took {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
