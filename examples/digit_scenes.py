"""Scenes of scikit-learn's digits with annotations, and crops of their ink.

Imported by demo_coco.py and demo_ade20k.py; it needs no download.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from mmpatchmix.datasets import Digits

INK = 64  # pixels of scenes above a quarter of the full tone belong to a digit
MIN_VISIBLE = 0.5  # share of a digit's pixels that later digits leave visible


def write_digit_scenes(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    image_size: int = 128,
    num_digits: tuple[int, int] = (3, 6),
    digit_size: tuple[int, int] = (24, 48),
    seed: int = 0,
) -> None:
    """Write ``train/``, ``val/`` and ``annotations/instances_{train,val}.json`` in COCO's format.

    ``labels/{train,val}/`` has the class of every pixel, 0 for the background, for segmentation.

    Digits lie on black at random places and sizes; later ones cover earlier ones,
    of which half stays visible. Masks are the visible pixels, as compressed RLE. Training and
    validation scenes share no digit. Equal arguments give equal files; existing ones are replaced.
    ``image_size`` is the side of a scene in pixels, ``num_digits`` the range of digits per scene
    (crowded ones have fewer), ``digit_size`` that of their sides in pixels, at least 8.
    """
    root = Path(root)
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    splits = [('train', 'train', num_train), ('test', 'val', num_val)]
    for stream, (split, name, count) in enumerate(splits):
        generator = np.random.default_rng([seed, stream])
        digits = Digits(split=split, image_size=digit_size[1])
        digits.full_init()
        for folder in (root / name, root / 'labels' / name):
            folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            canvas, objects = _compose(generator, digits, image_size, num_digits, digit_size)
            file = f'{number:06d}.png'
            cv2.imwrite(str(root / name / file), canvas)
            images.append(dict(id=number, file_name=file, width=image_size, height=image_size))
            labels = np.zeros_like(canvas)
            for label, mask, _ in objects:
                labels[mask] = label + 1
                encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                one = dict(id=len(annotations) + 1, image_id=number, category_id=label + 1)
                one |= dict(area=float(rle.area(encoded)), bbox=rle.toBbox(encoded).tolist())
                encoded['counts'] = encoded['counts'].decode()
                annotations.append(one | dict(iscrowd=0, segmentation=encoded))
            cv2.imwrite(str(root / 'labels' / name / file), labels)
        info = dict(description='scenes of scikit-learn digits', seed=seed)
        categories = [dict(id=label + 1, name=str(label)) for label in range(10)]
        content = dict(info=info, images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))


def _compose(generator, digits, image_size: int, num_digits: tuple, digit_size: tuple) -> tuple:
    """Return a scene, (S, S) uint8; per digit label, visible mask, (S, S) bool, and whole area."""
    canvas = np.zeros((image_size, image_size), np.uint8)
    wanted = int(generator.integers(num_digits[0], num_digits[1] + 1))
    objects = []
    for _ in range(20 * wanted):
        if len(objects) == wanted:
            break
        sample = digits.get_data_info(int(generator.integers(len(digits))))
        side = int(generator.integers(digit_size[0], digit_size[1] + 1))
        ink = cv2.resize(sample['img'][:, :, 0], (side, side), interpolation=cv2.INTER_AREA)
        top, left = generator.integers(0, image_size - side + 1, size=2)
        window = np.s_[top : top + side, left : left + side]
        mask = np.zeros_like(canvas, dtype=bool)
        mask[window] = ink > INK
        covered = [(label, old & ~mask, area) for label, old, area in objects]
        if all(rest.sum() >= MIN_VISIBLE * area for _, rest, area in covered):
            canvas[window] = np.where(mask[window], ink, canvas[window])
            objects = [*covered, (sample['gt_label'], mask, int(mask.sum()))]
    return canvas, objects


def write_ink_crops(scenes: str | Path, folder: str | Path) -> int:
    """Cut pieces of connected ink out of PNG scenes, without annotations; return their number."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(Path(scenes).glob('*.png')):
        scene = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for number, crop in enumerate(crop_ink(scene)):
            cv2.imwrite(str(folder / f'{path.stem}_{number}.png'), crop)
            count += 1
    return count


def crop_ink(
    scene: np.ndarray, smallest: int = 10, largest: int = 56, size: int = 32
) -> list[np.ndarray]:
    """Return square crops, (size, size) uint8, centred on pieces of connected ink, with a margin.

    ``scene`` is (H, W) uint8, ink on black. The longer side of a piece is between ``smallest`` and
    ``largest`` pixels, which excludes fragments and overlapping digits.
    """
    _, _, boxes, _ = cv2.connectedComponentsWithStats((scene > INK).astype(np.uint8))
    crops = []
    for left, top, width, height, _ in boxes[1:]:  # the first is the background
        side = max(width, height)
        if not smallest <= side <= largest:
            continue
        square = round(1.2 * side)
        padded = cv2.copyMakeBorder(scene, *[square] * 4, cv2.BORDER_CONSTANT)
        centre = (square + left + width / 2 - 0.5, square + top + height / 2 - 0.5)
        crop = cv2.getRectSubPix(padded, (square, square), centre)
        crops.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA))
    return crops
