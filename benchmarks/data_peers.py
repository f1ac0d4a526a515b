"""The recipe's views made by torchvision on Pillow images, and by mmpretrain's transforms."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageFilter
from torchvision import transforms as T

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def blur_by_pillow(image: Image.Image) -> Image.Image:
    """Blur with Pillow's Gaussian, which is three box filters, as MoCo v3 and DINO do."""
    sigma = torch.empty(1).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def torchvision_pipeline(crops: list[dict], pillow_blur: bool) -> Callable[[Path], list]:
    """Return a pipeline of torchvision's transforms of Pillow images, for the recipe's crops."""

    def chain(size, scale, num, color_jitter, color_jitter_prob, grayscale_prob, **more):
        kernel = 2 * (size // 10 // 2) + 1  # 23 for 224, 9 for 96
        blur = blur_by_pillow if pillow_blur else T.GaussianBlur(kernel, (0.1, 2.0))
        steps = [
            T.RandomResizedCrop(size, scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomApply([T.ColorJitter(*color_jitter)], p=color_jitter_prob),
            T.RandomGrayscale(p=grayscale_prob),
            T.RandomApply([blur], p=more['blur_prob']),
            T.RandomSolarize(128, p=more.get('solarize_prob', 0.0)),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(np.array(MEAN) / 255, np.array(STD) / 255),
        ]
        return [T.Compose(steps)] * num

    chains = [view for crop in crops for view in chain(**crop)]

    def run(path: Path) -> list:
        with Image.open(path) as opened:
            image = opened.convert('RGB')
        return [view(image) for view in chains]

    return run


def mmpretrain_pipeline(crops: list[dict], backend: str) -> Callable[[Path], dict]:
    """Return a pipeline of mmpretrain's transforms; its normalisation runs on the device."""

    def chain(size, scale, num, color_jitter, color_jitter_prob, grayscale_prob, **more):
        names = ('brightness', 'contrast', 'saturation', 'hue')
        crop = dict(scale=size, crop_ratio_range=scale, interpolation='bicubic', backend=backend)
        jitter = dict(zip(names, color_jitter, strict=True), type='ColorJitter', backend=backend)
        gray = dict(keep_channels=True, channel_weights=(0.114, 0.587, 0.2989))
        sigma = dict(magnitude_range=(0.1, 2.0), magnitude_std='inf')
        return [
            dict(type='RandomResizedCrop', **crop),
            dict(type='RandomApply', transforms=[jitter], prob=color_jitter_prob),
            dict(type='RandomGrayscale', prob=grayscale_prob, **gray),
            dict(type='GaussianBlur', prob=more['blur_prob'], **sigma),
            dict(type='Solarize', thr=128, prob=more.get('solarize_prob', 0.0)),
            dict(type='RandomFlip', prob=0.5),
        ]

    views = [chain(**crop) for crop in crops]
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='MultiView', transforms=views, num_views=[crop['num'] for crop in crops]),
        dict(type='PackInputs'),
    ]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    return lambda path: pipeline({'img_path': str(path)})
