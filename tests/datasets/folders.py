"""Folders of small images for the tests."""

import zlib
from pathlib import Path

import cv2
import numpy as np

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpatchmix.MultiCrop', global_size=16),
    dict(type='mmpatchmix.PackViews'),
]


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    assert cv2.imwrite(str(path), rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))


def make_folder(root: Path, *names: str) -> Path:
    for name in names:
        write_image(root / name)
    return root


def make_classes(root: Path, num_per_class: int, classes=('ant', 'bee', 'cow')) -> Path:
    return make_folder(root, *(f'{c}/{i:03d}.jpg' for c in classes for i in range(num_per_class)))
