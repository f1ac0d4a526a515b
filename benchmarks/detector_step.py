"""A training step of Mask R-CNN on images and objects that are made up, on this device.

python benchmarks/detector_step.py --config mask-rcnn_vit-s_fpn_1x --batch 2 --size 800
"""

from pathlib import Path

import numpy as np
import torch
from harness import choose_precision, keep_memory_as_training_does, measure, parse_args, report
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData

from mmpatchmix.cli.arguments import set_precision
from mmpatchmix.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs/coco'
NUM_OBJECTS = 8


def make_batch(num_images: int, size: int) -> dict:
    """Make noise with boxes of an eighth to a half of the image, and masks that fill them."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(num_images):
        sides = rng.integers(size // 8, size // 2, (NUM_OBJECTS, 2))
        corners = (rng.random((NUM_OBJECTS, 2)) * (size - sides)).astype(int)
        masks = np.zeros((NUM_OBJECTS, size, size), np.uint8)
        for mask, (x, y), (width, height) in zip(masks, corners, sides, strict=True):
            mask[y : y + height, x : x + width] = 1
        objects = InstanceData(
            bboxes=torch.from_numpy(np.concatenate([corners, corners + sides], 1)).float(),
            labels=torch.from_numpy(rng.integers(0, 80, NUM_OBJECTS)),
            masks=BitmapMasks(masks, size, size),
        )
        shape = (size, size)
        about = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=about | dict(batch_input_shape=shape))
        sample.gt_instances = objects
        samples.append(sample)
    images = torch.from_numpy(rng.integers(0, 256, (num_images, 3, size, size), np.uint8))
    return dict(inputs=list(images), data_samples=samples)


def main() -> None:
    args = parse_args(__doc__, config='mask-rcnn_vit-s_fpn_1x', batch=2, size=800, precision='auto')
    precision = choose_precision(args.precision)
    keep_memory_as_training_does()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / f'{args.config}.py')
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train().to('cuda' if torch.cuda.is_available() else 'cpu')
    set_precision(cfg, precision == 'bf16')  # as --amp and --no-amp
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = make_batch(args.batch, args.size)
    seconds = measure({'step': lambda: model.train_step(batch, wrapper)}, args.repeats)
    rows = [{'step': args.config, 's': seconds['step'], 'images/s': args.batch / seconds['step']}]
    sizes = dict(batch=args.batch, size=args.size, precision=precision)
    report('a step of a detector', rows, repeats=args.repeats, **sizes)


if __name__ == '__main__':
    main()
