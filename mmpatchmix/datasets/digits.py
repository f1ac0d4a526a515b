"""scikit-learn's handwritten digits: real images that need no download."""

import json
from pathlib import Path

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset
from pycocotools import mask as rle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mmpatchmix.registry import DATASETS


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 handwritten digits embedded in scikit-learn, enlarged.

    The originals are 8x8 with values 0..16
    (https://archive.ics.uci.edu/dataset/80, test part). They are scaled to 0..255
    and enlarged with OpenCV's bicubic interpolation. The split is stratified by
    class and the same in every run.

    A sample holds ``img`` (uint8, (image_size, image_size, 3), three equal channels),
    ``gt_label`` (int), ``img_shape`` and ``ori_shape``.

    Args:
        split: 'train' or 'test'; the two share no image.
        image_size: Side of the enlarged images, in pixels, at least 8.
        test_share: Share of the images that the test split takes, in (0, 1).
        changed: Whether to move each image by up to an eighth of its side, resize it by a
            factor of 0.75 to 1.1 and turn it by up to 20 degrees, on black; the same in every run.
        **kwargs: As in mmpretrain's ``BaseDataset``: ``pipeline``, ``indices``, ...

    Raises:
        ValueError: If an argument is out of its range.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(
        self,
        split: str = 'train',
        image_size: int = 32,
        test_share: float = 0.2,
        changed: bool = False,
        **kwargs,
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"Digits: split must be 'train' or 'test', got {split!r}")
        if not isinstance(image_size, int) or image_size < 8:
            raise ValueError(
                f'Digits: image_size must be a whole number >= 8 (the originals are 8x8), '
                f'got {image_size!r}'
            )
        # Below ten images the stratified split could not hold every class.
        if not 0.01 <= test_share <= 0.99:
            raise ValueError(f'Digits: test_share must lie in [0.01, 0.99], got {test_share!r}')
        self.split = split
        self.image_size = image_size
        self.test_share = test_share
        self.changed = changed
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Enlarge the images of the split; called once, by ``full_init``."""
        digits = load_digits()  # images: (1797, 8, 8) float64, 0..16
        train, test = train_test_split(
            np.arange(len(digits.target)),
            test_size=self.test_share,
            stratify=digits.target,
            random_state=0,
        )
        chosen = np.sort(train if self.split == 'train' else test)
        images = [self._enlarge(digits.images[index]) for index in chosen]
        if self.changed:
            generator = np.random.default_rng(0)
            images = [self._change(image, generator) for image in images]
        return [
            {
                'img': image,
                'gt_label': int(digits.target[index]),
                'img_shape': (self.image_size, self.image_size),
                'ori_shape': (self.image_size, self.image_size),
            }
            for index, image in zip(chosen, images, strict=True)
        ]

    def _enlarge(self, image: np.ndarray) -> np.ndarray:
        size = (self.image_size, self.image_size)
        large = cv2.resize(
            image.astype(np.float32) * (255 / 16), size, interpolation=cv2.INTER_CUBIC
        )
        # Bicubic overshoots at edges: clip before the cast, which would wrap around.
        grey = np.clip(np.rint(large), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)

    def _change(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        middle = (self.image_size - 1) / 2
        angle, factor = generator.uniform(-20, 20), generator.uniform(0.75, 1.1)
        matrix = cv2.getRotationMatrix2D((middle, middle), angle, factor)
        matrix[:, 2] += generator.uniform(-1, 1, 2) * self.image_size / 8
        return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)


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
