"""scikit-learn's handwritten digits: real images that need no download."""

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset
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
