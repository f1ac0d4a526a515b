"""Mask R-CNN on few images, from backbones pre-trained without annotations and from random weights.

    python benchmarks/detection.py --list
    python benchmarks/detection.py --seeds 0 1 2

A ViT is pre-trained on pieces of ink of 2,000 generated scenes of digits, by PatchMix and by MoCo
v3 (`num_mix=1`), with views that move, resize and turn them and, `plain`, without augmentation.
Mask R-CNN is trained on the annotations of the first N scenes, with the best learning rate of the
`tune-...` rows. Each run appends a line to benchmarks/results/detection.jsonl; a stopped command
continues when it is repeated.
"""

import json
import sys
import time
from functools import cache
from pathlib import Path

from harness import make_parser
from mmengine.config import Config
from runs import HERE, append_result, build_quiet_runner, digest_config, read_results

sys.path.append(str(HERE.parent / 'examples'))
from digit_scenes import write_digit_scenes, write_ink_crops

RESULTS = HERE / 'results/detection.jsonl'
CONFIGS = HERE.parent / 'configs'
ROOT = Path('work_dirs/detection')
SCENES = ROOT / 'scenes'
NUM_SCENES, NUM_HELD_OUT = 2_000, 100
COUNTS = (10, 20, 50, 100, 400)
EPOCHS = 3  # of 400 scenes: 1,200 in each run
# Images per mix of the pre-training, and whether it augments.
STARTS = {
    'random': None,
    'patchmix': (2, True),
    'mocov3': (1, True),
    'plain-patchmix': (2, False),
    'plain-mocov3': (1, False),
}
RATES = (1e-3, 2e-3, 4e-3)
CHOSEN = 2e-3  # by the tune rows of random weights and augmented views; for every start

ROWS = {
    **{f'tune-{start}-lr{lr:g}': (start, 50, lr) for lr in RATES for start in STARTS},
    **{f'{start}-{num}': (start, num, CHOSEN) for num in COUNTS for start in STARTS},
}


@cache
def pretraining_config(num_mix: int, augments: bool) -> tuple[Config, str]:
    """Return the config of a pre-training, and the checkpoint that it writes."""
    cfg = Config.fromfile(CONFIGS / 'patchmix_vit-digits_scenes.py')
    cfg.train_dataloader.dataset.data_root = str(ROOT / 'crops')
    cfg.model.data_preprocessor.num_mix = num_mix
    cfg.work_dir = str(ROOT / f'pretraining-{num_mix}')
    if not augments:
        cfg.work_dir += '-plain'
        plain = Config.fromfile(CONFIGS / 'patchmix_vit-digits_plain.py').train_dataloader
        cfg.train_dataloader.dataset.pipeline[1:] = plain.dataset.pipeline
    return cfg, f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'


def build_config(row: str, seed: int) -> tuple[Config, str]:
    """Return the config of a run and its digest."""
    start, num_images, lr = ROWS[row]
    cfg = Config.fromfile(CONFIGS / 'coco/mask-rcnn_vit-digits_scenes.py')
    use_scenes(cfg, num_images, is_tuned=row.startswith('tune-'))
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.randomness.seed = seed
    digest_before = None
    if STARTS[start]:
        before, cfg.model.backbone.init_cfg.checkpoint = pretraining_config(*STARTS[start])
        digest_before = digest_config(before)
    cfg.work_dir = str(ROOT / f'{row}-{seed}')
    return cfg, digest_config(cfg, digest_before)


def use_scenes(cfg: Config, num_scenes: int, is_tuned: bool) -> None:
    """Set the scenes of a run."""
    train = cfg.train_dataloader
    train.batch_size = 4
    annotations = f'annotations/instances_train_{num_scenes}.json'
    train.dataset.update(data_root=str(SCENES), ann_file=annotations)
    times = max(COUNTS) // num_scenes
    train.dataset = dict(type='RepeatDataset', times=times, dataset=train.dataset)
    cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    cfg.param_scheduler[1].end = EPOCHS
    annotations = f'annotations/instances_{"held_out" if is_tuned else "val"}.json'
    images = dict(img='train/' if is_tuned else 'val/')
    paths = dict(data_root=str(SCENES), ann_file=annotations, data_prefix=images)
    for name in ('val', 'test'):
        cfg[f'{name}_dataloader'].dataset.update(paths)
        cfg[f'{name}_evaluator'].ann_file = str(SCENES / annotations)


def prepare(starts: set[str]) -> None:
    """Write scenes and crops, and pre-train the backbones, unless they exist."""
    crops = ROOT / 'crops'
    if not crops.is_dir():
        print('writing scenes and crops ...', flush=True)
        write_scenes()
        partial = crops.with_name('crops.partial')
        partial.mkdir(exist_ok=True)
        write_ink_crops(SCENES / 'train', partial)
        partial.rename(crops)
    for how in sorted(STARTS[start] for start in starts if STARTS[start]):
        cfg, checkpoint = pretraining_config(*how)
        if not Path(checkpoint).is_file():
            print(f'pre-training in {cfg.work_dir} ...', flush=True)
            build_quiet_runner(cfg).train()


def write_scenes() -> None:
    """Write the scenes in COCO's layout, and annotations of their parts."""
    write_digit_scenes(SCENES, num_train=NUM_SCENES)
    content = json.loads((SCENES / 'annotations/instances_train.json').read_text())
    parts = {f'train_{num}': content['images'][:num] for num in COUNTS}
    parts['held_out'] = content['images'][NUM_SCENES - NUM_HELD_OUT :]
    for name, images in parts.items():
        wanted = {image['id'] for image in images}
        annotations = [one for one in content['annotations'] if one['image_id'] in wanted]
        text = json.dumps(content | dict(images=images, annotations=annotations))
        (SCENES / f'annotations/instances_{name}.json').write_text(text)


def train_detector(row: str, seed: int, cfg: Config) -> dict:
    """Train a detector without saving it; return its settings, cost, and AP in percent."""
    start, num_images, lr = ROWS[row]
    cfg.default_hooks.checkpoint.interval = 1000
    cfg.default_hooks.checkpoint.save_last = False
    runner = build_quiet_runner(cfg)
    began = time.monotonic()
    runner.train()
    scalars = runner.message_hub.log_scalars
    metrics = {
        f'{ours}_{ap.lower()}': 100 * scalars[f'val/coco/{theirs}_m{key}'].current()
        for ours, theirs in (('box', 'bbox'), ('mask', 'segm'))
        for ap, key in (('AP', 'AP'), ('AP50', 'AP_50'))
    }
    settings = dict(start=start, num_scenes=num_images, lr=lr)
    seconds = round(time.monotonic() - began, 1)
    return settings | dict(iterations=runner.max_iters, seconds=seconds) | metrics


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--list', action='store_true', help='list the runs and their state')
    parser.add_argument('--rows', nargs='+', choices=ROWS, metavar='ROW', default=[*ROWS])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    args = parser.parse_args()
    done = {line['config'] for line in read_results(RESULTS)}
    if not args.list:
        prepare({ROWS[row][0] for row in args.rows})
    for seed in args.seeds:
        for row in args.rows:
            cfg, digest = build_config(row, seed)
            print(f'{row}, seed {seed}:', 'done' if digest in done else 'to do', flush=True)
            if not args.list and digest not in done:
                line = dict(row=row, seed=seed, config=digest)
                append_result(RESULTS, line | train_detector(row, seed, cfg))


if __name__ == '__main__':
    main()
