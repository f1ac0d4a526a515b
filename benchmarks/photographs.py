"""What does a pre-trained backbone bring on real photographs? Objects of any class in 100 of them.

    python benchmarks/photographs.py --photographs PATH --list
    python benchmarks/photographs.py --photographs PATH --seeds 0 1 2

PATH holds photographs in COCO's layout: train2017, val2017 and annotations. A ViT is pre-trained
on unlabelled crops of the first 100 of train2017, by PatchMix and by MoCo v3 (`num_mix=1`). Then
Mask R-CNN learns from the annotations of the same 100, all classes as one, from either backbone
and from random weights, and is judged on the first 100 of val2017. Rates are those of
detection.py.

One JSON line per run in benchmarks/results/photographs.jsonl; a cut command continues when it is
given again. benchmarks/evidence.py makes a table of the file.
"""

import json
from functools import cache
from pathlib import Path

from detection import CHOSEN, STARTS, last_checkpoint, pretrain, train_detector
from runs import HERE, append_result, digest_config, parse_runs, run_all

RESULTS = HERE / 'results/photographs.jsonl'
ROOT = Path('work_dirs/photographs')
NUM_PHOTOGRAPHS, NUM_CROPS = 100, 44  # crops of each
ROWS = {f'photographs-{start}': start for start in STARTS}
SHORTER_SIDE, CROP = 160, 64  # of the photographs when crops are cut, and of these


def build_detector(row: str, seed: int, photographs: str):
    """Return the config of a run and its digest."""
    from mmengine.config import Config

    start = ROWS[row]
    cfg = Config.fromfile(HERE / 'configs/photographs_detection.py')
    cfg.optim_wrapper.optimizer.lr = CHOSEN[start]
    cfg.randomness.seed = seed
    before = STARTS[start] and pretraining_config(STARTS[start])
    # Before there are paths in it: a run is the same wherever the photographs lie.
    digest = digest_config(cfg, before and digest_config(before))
    if before:
        cfg.model.backbone.checkpoint = last_checkpoint(before)
    for name, part in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        file = str((ROOT / f'instances_{part}.json').absolute())
        cfg[f'{name}_dataloader'].dataset.update(data_root=photographs, ann_file=file)
        if name != 'train':
            cfg[f'{name}_evaluator'].ann_file = file
    cfg.work_dir = str(ROOT / f'{row}-{seed}')
    return cfg, digest


@cache
def pretraining_config(num_mix: int):
    """Return the config of a pre-training."""
    from mmengine.config import Config

    cfg = Config.fromfile(HERE / 'configs/photographs_pretraining.py')
    cfg.model.data_preprocessor.num_mix = num_mix
    cfg.work_dir = str(ROOT / f'pretraining-{num_mix}')
    return cfg


def prepare(rows: list[str], photographs: Path) -> None:
    """Write annotations of one class, crops and the backbones, if they are not there."""
    if not (ROOT / 'crops').is_dir():
        ROOT.mkdir(parents=True, exist_ok=True)
        files = {}
        for part in ('train', 'val'):
            files[part] = write_annotations(photographs, part)
        print('cutting crops ...', flush=True)
        cut_crops([photographs / 'train2017' / name for name in files['train']])
    for num_mix in filter(None, {STARTS[ROWS[row]] for row in rows}):
        pretrain(pretraining_config(num_mix))


def write_annotations(photographs: Path, part: str) -> list[str]:
    """Write the annotations of the first photographs as one class; return the file names."""
    path = photographs / f'annotations/instances_{part}2017.json'
    content = json.loads(path.read_text())
    images = sorted(content['images'], key=lambda image: image['id'])[:NUM_PHOTOGRAPHS]
    wanted = {image['id'] for image in images}
    annotations = [
        dict(one, category_id=1) for one in content['annotations'] if one['image_id'] in wanted
    ]
    text = json.dumps(
        dict(images=images, annotations=annotations, categories=[{'id': 1, 'name': 'object'}])
    )
    (ROOT / f'instances_{part}.json').write_text(text)
    return [image['file_name'] for image in images]


def cut_crops(paths: list[Path]) -> None:
    """Cut square crops at random places and sizes out of photographs."""
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    partial = ROOT / 'crops.partial'
    partial.mkdir(exist_ok=True)
    for path in paths:
        photo = cv2.imread(str(path))
        factor = SHORTER_SIDE / min(photo.shape[:2])
        photo = cv2.resize(photo, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        height, width = photo.shape[:2]
        for number in range(NUM_CROPS):
            top = generator.integers(0, height - CROP + 1)
            left = generator.integers(0, width - CROP + 1)
            crop = photo[top : top + CROP, left : left + CROP]
            cv2.imwrite(str(partial / f'{path.stem}_{number}.png'), crop)
    partial.rename(ROOT / 'crops')


def main() -> None:
    """Run what is not in the results yet."""
    parser = parse_runs(__doc__, list(ROWS), RESULTS)
    parser.add_argument('--photographs', required=True, help="folder in COCO's layout")
    args = parser.parse_args()
    if args.one:
        row, seed = args.rows[0], args.seeds[0]
        cfg, digest = build_detector(row, seed, args.photographs)
        line = dict(row=row, seed=seed, config=digest, lr=CHOSEN[ROWS[row]])
        append_result(args.results, line | train_detector(cfg))
        return
    run_all(
        __file__,
        args,
        digest=lambda *which: build_detector(*which, args.photographs)[1],
        prepare=lambda: prepare(args.rows, Path(args.photographs)),
        options=('--photographs', args.photographs),
    )


if __name__ == '__main__':
    main()
