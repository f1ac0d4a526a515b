"""``Digits``: scikit-learn's handwritten digits, which need no download."""

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset

from mmpatchmix.registry import DATASETS


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 handwritten digits of scikit-learn, enlarged.

    The originals are 8x8 with values 0..16 (https://archive.ics.uci.edu/dataset/80, test part). A
    fifth of them is the test split, stratified by class and always the same. A sample holds
    ``img``, (image_size, image_size, 3) uint8 with equal channels, ``gt_label``, ``img_shape`` and
    ``ori_shape``. ``ValueError`` if an argument is out of range.

    Args:
        split: 'train' or 'test'; they share no image.
        image_size: Side of the enlarged images in pixels, at least 8.
        changed: Whether to shift each image by up to an eighth of its side, resize it by a factor
            of 0.75 to 1.1 and rotate it by up to 20 degrees, on black; always the same.
        **kwargs: As in mmpretrain's ``BaseDataset``: ``pipeline``, ``indices``, ...
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(
        self, split: str = 'train', image_size: int = 32, changed: bool = False, **kwargs
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"Digits: split must be 'train' or 'test', got {split!r}")
        if not isinstance(image_size, int) or image_size < 8:
            raise ValueError(f'Digits: image_size must be a whole number >= 8, got {image_size!r}')
        self.split, self.image_size, self.changed = split, image_size, changed
        # Not serialised: mmengine then collects garbage, for half a second.
        super().__init__(ann_file='', **{'serialize_data': False, **kwargs})

    def load_data_list(self) -> list[dict]:
        """Enlarge the images of the split; called once, by ``full_init``."""
        from sklearn.datasets import load_digits  # takes a second to import
        from sklearn.model_selection import train_test_split

        digits = load_digits()  # images: (1797, 8, 8) float64, 0..16
        numbers, classes = np.arange(len(digits.target)), digits.target
        splits = train_test_split(numbers, test_size=0.2, stratify=classes, random_state=0)
        chosen = np.sort(splits[self.split == 'test'])
        generator = np.random.default_rng(0)
        shape = (self.image_size, self.image_size)
        samples = []
        for index in chosen:
            scaled = digits.images[index].astype(np.float32) * (255 / 16)
            large = cv2.resize(scaled, shape, interpolation=cv2.INTER_CUBIC)
            # Clipped, because bicubic overshoots at edges and the cast would wrap around.
            grey = np.clip(np.rint(large), 0, 255).astype(np.uint8)
            if self.changed:
                grey = self._change(grey, generator)
            img = np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)
            label = int(digits.target[index])
            samples.append({'img': img, 'gt_label': label, 'img_shape': shape, 'ori_shape': shape})
        return samples

    def _change(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        middle = (self.image_size - 1) / 2
        angle, factor = generator.uniform(-20, 20), generator.uniform(0.75, 1.1)
        matrix = cv2.getRotationMatrix2D((middle, middle), angle, factor)
        matrix[:, 2] += generator.uniform(-1, 1, 2) * self.image_size / 8
        return cv2.warpAffine(image, matrix, image.shape, flags=cv2.INTER_LINEAR)
