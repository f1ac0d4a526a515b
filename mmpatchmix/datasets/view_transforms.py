"""The test view of images of any kind."""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose

from mmpatchmix.datasets.multi_crop import SIZE, check_image, is_size, resize, to_pair
from mmpatchmix.registry import TRANSFORMS

MARGIN = 256 / 224  # of what is resized, over what is kept of it


@TRANSFORMS.register_module()
class ResizeCentre(BaseTransform):
    """Resize by 256/224 of what covers a size, and keep the centre.

    On a square that is ``ResizeEdge`` and ``CenterCrop``, here for any number of channels, for
    float32 and for other shapes; like the crops of training it is antialiased bicubic.

    **Required and modified key**: ``img``, (H, W, C) uint8 or float32 from 0 to 255, becomes
    (height, width, C). **Added key**: ``img_shape``.

    Args:
        size: Side in pixels, or (height, width).

    Raises:
        ValueError: If the size is none, or the image is of another kind.
    """

    def __init__(self, size: int | Sequence = 224) -> None:
        if not is_size(size):
            raise ValueError(f'ResizeCentre: size must be {SIZE}; got {size!r}')
        self.size = to_pair(size)

    def transform(self, results: dict) -> dict:
        """Replace ``results['img']``; see the class."""
        img = results['img']
        check_image(type(self).__name__, img, results.get('img_path'))
        height, width = self.size
        scale = max(int(height * MARGIN) / img.shape[0], int(width * MARGIN) / img.shape[1])
        # Rounded down, as ResizeEdge does; the tiny rest keeps 255.99999 from becoming 255.
        new_size = (int(side * scale + 1e-6) for side in img.shape[:2])
        image = torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)[None]  # (1, C, H, W)
        out = image.new_empty(*new_size, img.shape[2]).permute(2, 0, 1)[None]  # channels last
        resize(image, out)
        top, left = (
            round((side - kept) / 2) for side, kept in zip(out.shape[2:], self.size, strict=True)
        )
        img = out[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        return results | {'img': img, 'img_shape': self.size}

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size!r})'


@TRANSFORMS.register_module()
class TransformViews(BaseTransform):
    """Make two global views with a list of transforms, drawn anew for each.

    For example, to move, resize and turn the image within a black border::

        dict(type='mmpatchmix.TransformViews', transforms=[
            dict(type='NumpyToPIL'),
            dict(type='torchvision/RandomAffine', degrees=20, translate=(0.1, 0.1)),
            dict(type='PILToNumpy'),
        ])

    **Required keys**: ``img``, a uint8 array of shape (H, W, 3).

    **Added keys**: ``view_1`` and ``view_2``, uint8 tensors of shape (3, h, w), of the size that
    the transforms give.

    Args:
        transforms: Configs of transforms that read and write ``img``.

    Raises:
        ValueError: If they do not end in a uint8 array of shape (h, w, 3).
    """

    def __init__(self, transforms: list[dict]) -> None:
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict:
        """Add the views of ``results['img']``; see the class."""
        views = {}
        for name in ('view_1', 'view_2'):
            # A copy: some transforms draw into the array that they are given.
            img = self.transforms(dict(results, img=results['img'].copy()))['img']
            check_image(type(self).__name__, img, results.get('img_path'))
            views[name] = torch.from_numpy(np.ascontiguousarray(img)).movedim(-1, -3)
        return results | views

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transforms!r})'
