"""Mask R-CNN on few images, from backbones pre-trained without annotations and from random weights.

    python benchmarks/detection.py --list
    python benchmarks/detection.py --seeds 0 1 2 --jobs 2
    python benchmarks/detection.py --photographs PATH --seeds 0 1 2

Scenes of digits are generated (mmpatchmix/datasets/digits.py): 2,000 for training, 100 for the
evaluation. A ViT is pre-trained on pieces of connected ink of all training scenes, by PatchMix and
by MoCo v3 (`num_mix=1`). Then Mask R-CNN is trained on the annotations of the first N scenes, from
either backbone and from random weights, each with its best learning rate (`tune-...` rows: 50
scenes, evaluated on 100 held-out training scenes). All runs train on 1,200 scenes in batches of 4,
however few different ones there are.

With --photographs, a folder in COCO's layout (train2017, val2017, annotations): the backbone is
pre-trained on unlabelled crops of the first 100 of train2017; Mask R-CNN is trained on the
annotations of these, all classes as one, and evaluated on the first 100 of val2017.

One line per run in benchmarks/results/detection.jsonl and photographs.jsonl; a stopped command
continues when it is repeated. benchmarks/evidence.py makes tables and a figure of the files.
"""

import json
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from runs import HERE, build_quiet_runner, digest_config, parse_runs, run_all

from mmpatchmix.datasets.digits import write_digit_scenes, write_ink_crops

CONFIGS = HERE.parent / 'configs'
ROOT, PHOTO_ROOT = Path('work_dirs/detection'), Path('work_dirs/photographs')
SCENES = ROOT / 'scenes'
NUM_SCENES, NUM_HELD_OUT = 2_000, 100
COUNTS = (10, 20, 50, 100, 400)
EPOCHS = 3  # of 400 scenes: 1,200 in each run
STARTS = dict(random=None, patchmix=2, mocov3=1)  # images per mix of the pre-training
RATES = (1e-3, 2e-3, 4e-3)
CHOSEN = 2e-3  # by the tune rows, for every start
NUM_PHOTOGRAPHS, NUM_CROPS = 100, 44  # crops of each
SHORTER_SIDE, CROP = 160, 64  # pixels of the photographs that are cut, and of the crops

ROWS = {
    **{f'tune-{start}-lr{lr:g}': (start, 50, lr) for lr in RATES for start in STARTS},
    **{f'{start}-{num}': (start, num, CHOSEN) for num in COUNTS for start in STARTS},
}
PHOTO_ROWS = {f'photographs-{start}': (start, NUM_PHOTOGRAPHS, CHOSEN) for start in STARTS}


@cache
def pretraining_config(num_mix: int, of_photographs: bool = False) -> Config:
    """Return the config of a pre-training."""
    if of_photographs:
        cfg, root = Config.fromfile(HERE / 'configs/photographs_pretraining.py'), PHOTO_ROOT
    else:
        cfg, root = Config.fromfile(CONFIGS / 'patchmix_vit-digits_scenes.py'), ROOT
        cfg.train_dataloader.dataset.data_root = str(ROOT / 'crops')
    cfg.model.data_preprocessor.num_mix = num_mix
    cfg.work_dir = str(root / f'pretraining-{num_mix}')
    return cfg


def last_checkpoint(cfg: Config) -> str:
    """Return the file that a run writes at its end."""
    return f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'


def build_config(row: str, seed: int, photographs: Path | None) -> tuple[Config, str]:
    """Return the config of a run and its digest."""
    start, num_images, lr = (ROWS | PHOTO_ROWS)[row]
    if photographs:
        cfg = Config.fromfile(HERE / 'configs/photographs_detection.py')
    else:
        cfg = Config.fromfile(CONFIGS / 'coco/mask-rcnn_vit-digits_scenes.py')
        use_scenes(cfg, num_images, is_tuned=row.startswith('tune-'))
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.randomness.seed = seed
    before = STARTS[start] and pretraining_config(STARTS[start], bool(photographs))
    digest_before = before and digest_config(before)
    if photographs:
        # Taken before paths are set: it does not depend on the place of the photographs.
        digest = digest_config(cfg, digest_before)
        use_photographs(cfg, str(photographs))
    if before:
        cfg.model.backbone.init_cfg.checkpoint = last_checkpoint(before)
    if not photographs:
        digest = digest_config(cfg, digest_before)
    cfg.work_dir = str((PHOTO_ROOT if photographs else ROOT) / f'{row}-{seed}')
    return cfg, digest


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


def use_photographs(cfg: Config, photographs: str) -> None:
    """Set the photographs of a run."""
    for name, part in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        file = str((PHOTO_ROOT / f'instances_{part}.json').absolute())
        cfg[f'{name}_dataloader'].dataset.update(data_root=photographs, ann_file=file)
        if name != 'train':
            cfg[f'{name}_evaluator'].ann_file = file


def prepare(starts: set[str], photographs: Path | None) -> None:
    """Write images and lists of images, and pre-train the backbones, unless they exist."""
    crops = (PHOTO_ROOT if photographs else ROOT) / 'crops'
    partial = crops.with_name('crops.partial')
    if not crops.is_dir():
        print('writing images and crops ...', flush=True)
        partial.mkdir(parents=True, exist_ok=True)
        if photographs:
            write_photographs(photographs, partial)
        else:
            write_scenes()
            write_ink_crops(SCENES / 'train', partial)
        partial.rename(crops)
    for num_mix in sorted(STARTS[start] for start in starts if STARTS[start]):
        cfg = pretraining_config(num_mix, bool(photographs))
        if not Path(last_checkpoint(cfg)).is_file():
            print(f'pre-training in {cfg.work_dir} ...', flush=True)
            build_quiet_runner(cfg).train()


def select(content: dict, images: list[dict], **changes) -> str:
    """Return annotations of some images in COCO's format."""
    wanted = {image['id'] for image in images}
    annotations = [one for one in content['annotations'] if one['image_id'] in wanted]
    return json.dumps(content | dict(images=images, annotations=annotations) | changes)


def write_scenes() -> None:
    """Write the scenes in COCO's layout, and annotations of their parts."""
    write_digit_scenes(SCENES, num_train=NUM_SCENES)
    content = json.loads((SCENES / 'annotations/instances_train.json').read_text())
    parts = {f'train_{num}': content['images'][:num] for num in COUNTS}
    parts['held_out'] = content['images'][NUM_SCENES - NUM_HELD_OUT :]
    for name, images in parts.items():
        (SCENES / f'annotations/instances_{name}.json').write_text(select(content, images))


def write_photographs(photographs: Path, crops: Path) -> None:
    """Write annotations of the first photographs as one class, and random crops of these."""
    one_class = [{'id': 1, 'name': 'object'}]
    for part in ('val', 'train'):
        path = photographs / f'annotations/instances_{part}2017.json'
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            annotation['category_id'] = 1
        images = sorted(content['images'], key=lambda image: image['id'])[:NUM_PHOTOGRAPHS]
        text = select(content, images, categories=one_class)
        (PHOTO_ROOT / f'instances_{part}.json').write_text(text)
    generator = np.random.default_rng(0)
    for path in (photographs / 'train2017' / image['file_name'] for image in images):
        photo = cv2.imread(str(path))
        factor = SHORTER_SIDE / min(photo.shape[:2])
        photo = cv2.resize(photo, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        for number in range(NUM_CROPS):
            top, left = (generator.integers(0, side - CROP + 1) for side in photo.shape[:2])
            crop = photo[top : top + CROP, left : left + CROP]
            cv2.imwrite(str(crops / f'{path.stem}_{number}.png'), crop)


def train_detector(row: str, seed: int, cfg: Config) -> dict:
    """Train a detector without saving it; return its settings, cost, and AP in percent."""
    start, num_images, lr = (ROWS | PHOTO_ROWS)[row]
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
    parser = parse_runs(__doc__, [*ROWS, *PHOTO_ROWS], None)
    parser.add_argument('--photographs', type=Path, help="folder in COCO's layout")
    args = parser.parse_args()
    rows = PHOTO_ROWS if args.photographs else ROWS
    args.rows = [row for row in args.rows if row in rows]
    name = 'photographs' if args.photographs else 'detection'
    args.results = args.results or HERE / f'results/{name}.jsonl'
    options = ('--photographs', str(args.photographs)) if args.photographs else ()

    run_all(
        __file__,
        args,
        build=lambda row, seed: build_config(row, seed, args.photographs),
        run=train_detector,
        prepare=lambda: prepare({rows[row][0] for row in args.rows}, args.photographs),
        options=options,
    )


if __name__ == '__main__':
    main()
