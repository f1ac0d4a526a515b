"""Build configs with mmengine alone; train and test those that differ in their types.

python tests/plain_runner.py IMAGES SCENES WORK_DIR CONFIG...

``test_any_runner.py`` starts it; only the configs may import mmpatchmix.
"""

import gc

if __name__ == '__main__':  # not in tests that import this file
    gc.disable()  # for the imports: a fifth of their time
import functools
import re
import sys
from pathlib import Path

from mmengine.config import Config, utils
from mmengine.runner import Runner

# Widths of networks, and counts of samples and boxes.
LARGE = (192, 256, 384, 512, 768, 1024, 1280, 1536, 3072, 4096, 5120)


def narrow(node, width):
    """Return a part of a model's config with widths replaced."""
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = narrow(value, width)
    elif isinstance(node, list | tuple):
        return type(node)(narrow(value, width) for value in node)
    return width if node in LARGE else node


def use_images(dataset, images):
    """Replace ImageNet by a few images, and CIFAR, which needs a download, by digits."""
    if dataset.type == 'mmpatchmix.ImageFolder':
        dataset.data_root = str(images)
    else:
        kept = {key: dataset[key] for key in ('pipeline', 'split')}
        dataset.clear()
        dataset.update(type='mmpatchmix.Digits', indices=4, **kept)


def use_scenes(dataset, split, scenes):
    """Replace COCO by scenes of digits of 64 pixels."""
    dataset.update(
        data_root=str(scenes),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=tuple('0123456789')),
    )
    resize(dataset.pipeline, (64, 64))


def resize(node, size):
    """Replace the sizes in a pipeline."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            resize(value, size)
    if isinstance(node, dict):
        node.update({key: size for key in ('scale', 'crop_size') if key in node})
        node.update(dict(scales=[size]) if 'scales' in node else {})


def use_labels(dataset, split, scenes):
    """Replace ADE20K by scenes of digits, of 48 pixels as the narrowed model."""
    dataset.data_root, dataset.img_suffix = str(scenes), '.png'
    dataset.data_prefix = dict(img_path=split, seg_map_path=f'labels/{split}')
    resize(dataset.pipeline, (48, 48))


def shrink(cfg, images, scenes, width=48):
    """Change sizes only; all types stay. The number of heads, 3, 12 or 16, divides the width."""
    narrow(cfg.model, width)
    if cfg.default_scope == 'mmpretrain':
        cfg.model.backbone.arch.num_layers = 2
    # Without labels there is nothing to evaluate.
    loaders = [*filter(None, (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader))]
    loops = [*filter(None, (cfg.val_cfg, cfg.test_cfg))]
    loaders += [loop.bank_dataloader for loop in loops if 'bank_dataloader' in loop]
    for loader in loaders:
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        dataset = loader.dataset
        if 'dataset' in dataset:  # RepeatDataset
            dataset.times = 1
            dataset = dataset.dataset
        if cfg.default_scope in ('mmdet', 'mmseg'):
            use = use_scenes if cfg.default_scope == 'mmdet' else use_labels
            use(dataset, 'train' if loader is loaders[0] else 'val', scenes)
        else:
            use_images(dataset, images)
    for evaluator in filter(None, (cfg.val_evaluator, cfg.test_evaluator)):
        if 'ann_file' in evaluator:
            evaluator.ann_file = f'{scenes}/annotations/instances_val.json'
        if 'num_neighbors' in evaluator:
            evaluator.num_neighbors = (3,)
    if cfg.default_scope == 'mmdet':
        cfg.model.data_preprocessor.pad_size_divisor = 64
        for head in ('bbox_head', 'mask_head'):
            cfg.model.roi_head[head].num_classes = 10  # digits
    cfg.train_cfg.update(max_epochs=1, val_begin=2)


def main():
    # To save time: a Runner formats its config seven times, and each `mmdet::` reads 100 files.
    Config.pretty_text = property(lambda cfg: f'{cfg.to_dict()}')
    utils._get_cfg_metainfo = functools.cache(utils._get_cfg_metainfo)
    images, scenes, work_dir = map(Path, sys.argv[1:4])
    trained = set()
    for path in map(Path, sys.argv[4:]):
        cfg = Config.fromfile(path)
        shrink(cfg, images, scenes)
        cfg.work_dir = str(work_dir / path.stem)
        if trained:  # drawing figures takes longer than all the rest
            cfg.default_hooks.pop('report', None)
        runner = Runner.from_cfg(cfg)
        gc.freeze()  # mmengine collects garbage for every data set
        print('BUILT', path)
        types = tuple(re.findall(r"'type': '([^']*)'", cfg.pretty_text))
        if types not in trained:
            trained.add(types)
            runner.train()
            if cfg.test_cfg:
                runner.test()
            print('RAN', path, runner.iter)
    gc.unfreeze()


if __name__ == '__main__':
    main()
