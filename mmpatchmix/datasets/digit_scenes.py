"""Scenes of overlapping digits in COCO's format: detection data that needs no download."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from mmpatchmix.datasets.digits import Digits

# A pixel belongs to a digit where its ink is above a quarter of the full tone.
INK = 64


def write_digit_scenes(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    image_size: int = 128,
    num_digits: tuple[int, int] = (3, 6),
    digit_size: tuple[int, int] = (24, 48),
    min_visible: float = 0.5,
    seed: int = 0,
) -> None:
    """Write ``train/``, ``val/`` and ``annotations/instances_{train,val}.json``.

    Handwritten digits (scikit-learn's, enlarged) lie on black paper at random
    places and sizes; where they overlap the later one covers the earlier.
    Masks are the visible pixels, exactly, as compressed RLE. Training and
    validation scenes share no digit: they are drawn from the two splits of
    :class:`~mmpatchmix.datasets.Digits`. Equal arguments give equal files.

    Args:
        root: Folder to write to; made if it does not exist, files are replaced.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        image_size: Side of a scene in pixels.
        num_digits: Fewest and most digits per scene.
        digit_size: Smallest and largest side of a digit's square, in pixels.
        min_visible: Share of its pixels that a digit keeps visible, at least.
        seed: Of everything random.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check(image_size, num_digits, digit_size, min_visible)
    root = Path(root)
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    for stream, (split, name, count) in enumerate(
        [('train', 'train', num_train), ('test', 'val', num_val)]
    ):
        generator = np.random.default_rng([seed, stream])
        digits = Digits(split=split, image_size=digit_size[1])
        digits.full_init()
        folder = root / name
        folder.mkdir(exist_ok=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            canvas, objects = _compose(
                generator, digits, image_size, num_digits, digit_size, min_visible
            )
            file = f'{number:06d}.png'
            cv2.imwrite(str(folder / file), canvas)
            images.append(
                {'id': number, 'file_name': file, 'width': image_size, 'height': image_size}
            )
            for label, mask in objects:
                annotations.append(_annotate(len(annotations) + 1, number, label, mask))
        content = {
            'info': {'description': 'scenes of scikit-learn digits', 'seed': seed},
            'images': images,
            'annotations': annotations,
            'categories': [{'id': label + 1, 'name': str(label)} for label in range(10)],
        }
        (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))


def write_ink_crops(scenes: str | Path, folder: str | Path) -> int:
    """Cut pieces of connected ink out of scenes, without a look at annotations.

    Args:
        scenes: Folder of scenes as PNG files.
        folder: Where the crops go, 32x32 pixels each; made if it does not exist.

    Returns:
        int: How many there are.
    """
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
    """Return square crops around pieces of connected ink, centred, with a margin.

    Args:
        scene: (H, W) uint8, ink on black.
        smallest: Shortest longer side of a piece, in pixels: no rests of covered digits.
        largest: Longest longer side: no heaps of digits.
        size: Side of the crops, to which they are resized.

    Returns:
        list: Crops, (size, size) uint8.
    """
    _, _, boxes, _ = cv2.connectedComponentsWithStats((scene > INK).astype(np.uint8))
    crops = []
    for left, top, width, height, _ in boxes[1:]:  # the first is the paper
        side = max(width, height)
        if not smallest <= side <= largest:
            continue
        square = round(1.2 * side)
        # Beyond the scene the paper goes on.
        padded = cv2.copyMakeBorder(scene, *[square] * 4, cv2.BORDER_CONSTANT)
        centre = (square + left + width / 2 - 0.5, square + top + height / 2 - 0.5)
        crop = cv2.getRectSubPix(padded, (square, square), centre)
        crops.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA))
    return crops


def _check(
    image_size: int, num_digits: tuple[int, int], digit_size: tuple[int, int], min_visible: float
) -> None:
    if not 1 <= num_digits[0] <= num_digits[1]:
        raise ValueError(f'num_digits must be (fewest >= 1, most), got {num_digits}.')
    if not 8 <= digit_size[0] <= digit_size[1] <= image_size:
        raise ValueError(
            f'digit_size must be (smallest >= 8, largest <= image_size={image_size}), got '
            f'{digit_size}.'
        )
    if not 0 < min_visible <= 1:
        raise ValueError(f'min_visible must be in (0, 1], got {min_visible}.')


def _compose(
    generator: np.random.Generator,
    digits: Digits,
    image_size: int,
    num_digits: tuple[int, int],
    digit_size: tuple[int, int],
    min_visible: float,
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Compose a scene, (S, S) uint8, and per digit its label and visible mask, (S, S) bool."""
    canvas = np.zeros((image_size, image_size), np.uint8)
    wanted = int(generator.integers(num_digits[0], num_digits[1] + 1))
    labels: list[int] = []
    visible: list[np.ndarray] = []  # what of each digit later ones have left
    area: list[int] = []  # of each digit when nothing covers it
    # A crowded scene may have no room for another digit; it then keeps fewer.
    for _ in range(20 * wanted):
        if len(labels) == wanted:
            break
        label, ink = _draw(generator, digits, digit_size)
        top, left = generator.integers(0, image_size - len(ink) + 1, size=2)
        window = np.s_[top : top + len(ink), left : left + len(ink)]
        mask = np.zeros_like(canvas, dtype=bool)
        mask[window] = ink > INK
        covered = [old & ~mask for old in visible]
        if any(new.sum() < min_visible * full for new, full in zip(covered, area, strict=True)):
            continue
        canvas[window] = np.where(mask[window], ink, canvas[window])
        visible = [*covered, mask]
        area.append(int(mask.sum()))
        labels.append(label)
    return canvas, list(zip(labels, visible, strict=True))


def _draw(
    generator: np.random.Generator, digits: Digits, digit_size: tuple[int, int]
) -> tuple[int, np.ndarray]:
    """Draw a random digit: its label and its ink, ``(s, s)`` uint8 of a random size."""
    sample = digits.get_data_info(int(generator.integers(len(digits))))
    side = int(generator.integers(digit_size[0], digit_size[1] + 1))
    ink = cv2.resize(sample['img'][:, :, 0], (side, side), interpolation=cv2.INTER_AREA)
    return sample['gt_label'], ink


def _annotate(number: int, image: int, label: int, mask: np.ndarray) -> dict:
    """Return one entry of COCO's ``annotations``; boxes are x, y, width, height in pixels."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        'id': number,
        'image_id': image,
        'category_id': label + 1,
        'iscrowd': 0,
        'area': float(rle.area(encoded)),
        'bbox': rle.toBbox(encoded).tolist(),
        'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode()},
    }
