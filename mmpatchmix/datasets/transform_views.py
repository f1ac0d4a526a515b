"""Two views of an image by any transforms, where crops are not what an image needs."""

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose

from mmpatchmix.datasets.multi_crop import check_image
from mmpatchmix.registry import TRANSFORMS


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
