"""Photographs for judging a machine that has none: variations of scikit-learn's two."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images


def write_sample_photos(
    folder: str | Path, num_images: int, num_distinct: int = 64, seed: int = 0
) -> None:
    """Write JPEGs of about 500x375 pixels and 100 kB each, as ImageNet's are.

    They are crops of two photographs, resized, mirrored and changed in brightness, half of
    them each, in folders ``0`` and ``1``. Files beyond ``num_distinct`` are further names of
    earlier ones, so many of them take hardly any time or room.

    Args:
        folder: Where to; made when it is not there.
        num_images: How many files.
        num_distinct: How many of them differ.
        seed: Of the variations.
    """
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(seed)
    paths = [Path(folder, str(i % len(photos)), f'{i:07d}.jpg') for i in range(num_images)]
    for path in paths[: len(photos)]:
        path.parent.mkdir(parents=True, exist_ok=True)
    num_distinct -= num_distinct % len(photos)  # so that further names stay in their folder
    for index, path in enumerate(paths):
        if index >= num_distinct:
            path.hardlink_to(paths[index % num_distinct])
            continue
        # Quality 96 makes up for the detail that enlarging cannot add.
        _vary(photos[index % len(photos)], rng).save(path, quality=96)


def _vary(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = photo.size
    share = rng.uniform(0.6, 1.0)
    crop_width, crop_height = int(share * width), int(share * height)
    left = rng.integers(width - crop_width + 1)
    top = rng.integers(height - crop_height + 1)
    long_side, short_side = int(rng.uniform(460, 540)), int(rng.uniform(340, 410))
    image = photo.crop((left, top, left + crop_width, top + crop_height))
    image = image.resize((long_side, short_side), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < 0.25:
        image = image.transpose(Image.Transpose.ROTATE_90)  # upright
    brightness = rng.uniform(0.8, 1.2)
    return image.point(lambda value: min(255, int(brightness * value)))
