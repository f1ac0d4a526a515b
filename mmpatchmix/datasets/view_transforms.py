"""Views that are not random crops: the test view, and views made by any list of transforms."""

import math
from collections.abc import Sequence

from mmcv.transforms import BaseTransform, Compose
from mmpretrain.datasets import ResizeEdge as UpstreamResizeEdge

from mmpatchmix.datasets.multi_crop import MultiCrop, allocate, resize, to_pair, to_tensor
from mmpatchmix.registry import TRANSFORMS

MARGIN = 256 / 224  # resized side / side of the centre crop
MAX_ASPECT = 8  # of an image that is resized whole; of longer ones only the middle is


@TRANSFORMS.register_module()
class ResizeCentre(BaseTransform):
    """Resize an image to cover 256/224 of a size, and keep the centre.

    Equals ``ResizeEdge`` and ``CenterCrop`` for a square; also takes any channels and rectangles.
    The resize is antialiased bicubic, as in training. The key ``img``, (H, W, C) uint8 or float32
    from 0 to 255, becomes (height, width, C); ``img_shape`` is added.

    Args:
        size: Side in pixels, or (height, width).

    Raises:
        ValueError: If the size is invalid, or the image has another dtype or shape.
    """

    def __init__(self, size: int | Sequence = 224) -> None:
        self.size = to_pair('ResizeCentre: size', size)

    def transform(self, results: dict) -> dict:
        """Replace ``results['img']``."""
        image = to_tensor(type(self).__name__, results['img'], results.get('img_path'))
        height, width = self.size
        sides = image.shape[2:]
        scale = max(int(height * MARGIN) / sides[0], int(width * MARGIN) / sides[1])
        image = image[(..., *find_middle(sides, [MAX_ASPECT * side / scale for side in self.size]))]
        old_height, old_width = image.shape[2:]
        # Rounded down as in ResizeEdge, with a tolerance for 255.99999.
        new_height, new_width = int(old_height * scale + 1e-6), int(old_width * scale + 1e-6)
        out = allocate(image, (new_height, new_width), 1)
        resize(image, out)
        top, left = round((new_height - height) / 2), round((new_width - width) / 2)
        img = out[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        return results | {'img': img, 'img_shape': self.size}

    __repr__ = MultiCrop.__repr__


@TRANSFORMS.register_module()
class ResizeEdge(UpstreamResizeEdge):
    """mmpretrain's ``ResizeEdge`` for a centre crop: of strips only the middle is resized.

    It is 8 times as long as the shorter edge. Other images are resized as by mmpretrain's class.
    """

    def transform(self, results: dict) -> dict:
        """Resize ``results['img']``, (H, W[, C])."""
        img, size = results['img'], results['img'].shape[:2]
        if self.edge == 'short':
            img = img[find_middle(size, [MAX_ASPECT * min(size)] * 2)]
        return super().transform(results | {'img': img})


def find_middle(sizes: Sequence[int], limits: Sequence[float]) -> tuple[slice, ...]:
    """Return the middle of each axis of at least ``limits``, by even numbers of pixels cut off."""
    cuts = [max(0, old - math.ceil(new)) // 2 for old, new in zip(sizes, limits, strict=True)]
    return tuple(slice(cut, old - cut) for cut, old in zip(cuts, sizes, strict=True))


@TRANSFORMS.register_module()
class TransformViews(BaseTransform):
    """Make two global views by applying a list of random transforms twice.

    For example, to shift and rotate the image within a black border::

        dict(type='mmpatchmix.TransformViews', transforms=[
            dict(type='NumpyToPIL'),
            dict(type='torchvision/RandomAffine', degrees=20, translate=(0.1, 0.1)),
            dict(type='PILToNumpy'),
        ])

    **Required keys**: ``img``, (H, W, 3) uint8. **Added keys**: ``view_1`` and ``view_2``,
    (3, h, w) uint8, of the size that the transforms return.

    Args:
        transforms: Configs of transforms that read and write ``img``.

    Raises:
        ValueError: If the transforms do not return a uint8 or float32 array of shape (h, w, C).
    """

    def __init__(self, transforms: list[dict]) -> None:
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict:
        """Add the views of ``results['img']``."""
        views = {}
        for name in ('view_1', 'view_2'):
            # A copy, because some transforms work in place.
            img = self.transforms(dict(results, img=results['img'].copy()))['img']
            views[name] = to_tensor(type(self).__name__, img, results.get('img_path'))[0]
        return results | views

    __repr__ = MultiCrop.__repr__
