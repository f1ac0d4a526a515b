"""What does a backbone bring that saw scenes without annotations? Mask R-CNN on few scenes.

    python benchmarks/detection.py --list
    python benchmarks/detection.py --seeds 0 1 2 --jobs 2

Scenes of digits are made (see mmpatchmix/datasets/digits.py): 2,000 for training, 100 for
the judgement. A ViT is pre-trained on unlabelled crops of all training scenes, by PatchMix and by
MoCo v3 (`num_mix=1`). A crop is a piece of connected ink: on black paper it is found without
annotations. Then Mask R-CNN learns from the annotations of the first N scenes, from either
backbone and from random weights, each with the rate that served it best (`tune-...` rows: 50
scenes, judged on 100 training scenes that are used for nothing else). All runs see 1,200 scenes in
batches of 4, however few different ones there are.

One JSON line per run in benchmarks/results/detection.jsonl; a cut command continues when it is
given again. benchmarks/evidence.py makes table and figure of the file.
"""

import json
import time
from functools import cache
from pathlib import Path

from runs import HERE, append_result, digest_config, parse_runs, run_all

RESULTS = HERE / 'results/detection.jsonl'
ROOT = Path('work_dirs/detection')
SCENES = ROOT / 'scenes'
PRETRAINING = HERE.parent / 'configs/patchmix_vit-digits_scenes.py'
DETECTOR = HERE.parent / 'configs/coco/mask-rcnn_vit-digits_scenes.py'
NUM_SCENES, NUM_HELD_OUT = 2_000, 100
SEEN = 1_200  # scenes, in each run
COUNTS = (10, 20, 50, 100, 400)
STARTS = dict(random=None, patchmix=2, mocov3=1)  # images per mix of the pre-training
RATES = (1e-3, 2e-3, 4e-3)
# Of the tune rows.
CHOSEN = dict(random=2e-3, patchmix=2e-3, mocov3=2e-3)

ROWS = {
    **{f'tune-{start}-lr{lr:g}': (start, 50, lr) for lr in RATES for start in STARTS},
    **{f'{start}-{num}': (start, num, CHOSEN[start]) for num in COUNTS for start in STARTS},
}


def build_detector(row: str, seed: int):
    """Return the config of a run and its digest."""
    from mmengine.config import Config

    start, num_scenes, lr = ROWS[row]
    is_tuned = row.startswith('tune-')
    cfg = Config.fromfile(DETECTOR)
    part = f'annotations/instances_{"held_out" if is_tuned else "val"}.json'
    train = cfg.train_dataloader
    train.batch_size = 4
    train.dataset.update(
        data_root=str(SCENES), ann_file=f'annotations/instances_train_{num_scenes}.json'
    )
    train.dataset = dict(
        type='RepeatDataset', times=max(COUNTS) // num_scenes, dataset=train.dataset
    )
    assert SEEN % max(COUNTS) == 0
    epochs = SEEN // max(COUNTS)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    cfg.param_scheduler[1].end = epochs
    for name in ('val', 'test'):
        images = dict(img='train/' if is_tuned else 'val/')
        cfg[f'{name}_dataloader'].dataset.update(
            data_root=str(SCENES), ann_file=part, data_prefix=images
        )
        cfg[f'{name}_evaluator'].ann_file = str(SCENES / part)
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.randomness.seed = seed
    before = STARTS[start] and pretraining_config(STARTS[start])
    if before:
        cfg.model.backbone.checkpoint = last_checkpoint(before)
    cfg.work_dir = str(ROOT / f'{row}-{seed}')
    return cfg, digest_config(cfg, before and digest_config(before))


@cache
def pretraining_config(num_mix: int):
    """Return the config of a pre-training."""
    from mmengine.config import Config

    cfg = Config.fromfile(PRETRAINING)
    cfg.train_dataloader.dataset.data_root = str(ROOT / 'crops')
    cfg.model.data_preprocessor.num_mix = num_mix
    cfg.work_dir = str(ROOT / f'pretraining-{num_mix}')
    return cfg


def prepare(rows: list[str]) -> None:
    """Make scenes, lists of few scenes, crops and the rows' backbones, if they are not there."""
    if not (ROOT / 'crops').is_dir():
        print('making scenes and crops ...', flush=True)
        make_images()
    for num_mix in filter(None, {STARTS[ROWS[row][0]] for row in rows}):
        pretrain(pretraining_config(num_mix))


def last_checkpoint(cfg) -> str:
    """Return the file that a run will have written when it has ended."""
    return f'{cfg.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'


def pretrain(cfg) -> None:
    """Pre-train a backbone, if that has not been done."""
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()
    from mmpatchmix.cli.verb import build_runner

    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    if not Path(last_checkpoint(cfg)).is_file():
        print(f'pre-training in {cfg.work_dir} ...', flush=True)
        build_runner(cfg).train()


def make_images() -> None:
    """Write the scenes in COCO's layout, annotations of their parts, and crops of all."""
    from mmpatchmix.datasets.digits import write_digit_scenes, write_ink_crops

    write_digit_scenes(SCENES, num_train=NUM_SCENES)
    content = json.loads((SCENES / 'annotations/instances_train.json').read_text())
    parts = {f'train_{num}': (0, num) for num in COUNTS}
    parts['held_out'] = (NUM_SCENES - NUM_HELD_OUT, NUM_SCENES)
    for name, (first, last) in parts.items():
        images = content['images'][first:last]
        wanted = {image['id'] for image in images}
        annotations = [one for one in content['annotations'] if one['image_id'] in wanted]
        text = json.dumps(dict(content, images=images, annotations=annotations))
        (SCENES / f'annotations/instances_{name}.json').write_text(text)
    write_ink_crops(SCENES / 'train', ROOT / 'crops.partial')
    (ROOT / 'crops.partial').rename(ROOT / 'crops')


def run(row: str, seed: int, results: Path) -> None:
    """Train and judge one row, and append its line to the results."""
    start, num_scenes, lr = ROWS[row]
    cfg, digest = build_detector(row, seed)
    line = dict(row=row, seed=seed, config=digest, start=start, num_scenes=num_scenes, lr=lr)
    append_result(results, line | train_detector(cfg))


def train_detector(cfg) -> dict:
    """Train a detector without keeping it; return how it is judged, AP in percent, and its cost."""
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()
    from mmpatchmix.cli.verb import build_runner

    cfg.default_hooks.checkpoint.interval = 1000  # none is needed
    cfg.default_hooks.checkpoint.save_last = False
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    runner = build_runner(cfg)
    began = time.monotonic()
    runner.train()
    scalars = runner.message_hub.log_scalars
    metrics = {
        name: 100 * scalars[f'val/coco/{key}'].current()
        for name, key in (
            ('box_ap', 'bbox_mAP'),
            ('box_ap50', 'bbox_mAP_50'),
            ('mask_ap', 'segm_mAP'),
            ('mask_ap50', 'segm_mAP_50'),
        )
    }
    seconds = round(time.monotonic() - began, 1)
    return dict(iterations=runner.max_iters, seconds=seconds) | metrics


def main() -> None:
    """Run what is not in the results yet."""
    args = parse_runs(__doc__, list(ROWS), RESULTS).parse_args()
    if args.one:
        run(args.rows[0], args.seeds[0], args.results)
        return
    run_all(
        __file__,
        args,
        digest=lambda *which: build_detector(*which)[1],
        prepare=lambda: prepare(args.rows),
    )


if __name__ == '__main__':
    main()
