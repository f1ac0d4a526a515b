"""What the workers do per image: draw crops and resize them to uint8.

Everything photometric, the flip included, happens in the data preprocessor
(:class:`mmpatchmix.views.ViewAugment`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from mmpatchmix.datasets.crop_boxes import Box, draw_box
from mmpatchmix.registry import TRANSFORMS

# What torchvision's antialiased bicubic resize of uint8 tensors ends in. Its own way there
# copies, dispatches and allocates, which for ten small crops takes a fifth of the time.
_resize = torch.ops.aten._upsample_bicubic2d_aa.out


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Two global crops and any number of local crops of one image, as uint8.

    The boxes are torchvision's (``RandomResizedCrop.get_params``), the resize is
    its antialiased bicubic on uint8 tensors, straight from the decoded array into the crops,
    whose channels come last in memory.

    **Required keys**: ``img``, a uint8 array of shape (H, W, 3), any channel order.

    **Added keys**: ``view_1`` and ``view_2``, uint8 tensors of shape
    (3, global_size, global_size); ``local_views``, a uint8 tensor of shape
    (num_local, 3, local_size, local_size), only when ``num_local > 0``.

    Args:
        global_size (int): Side of the two global crops, in pixels.
        global_scale (tuple[float, float]): Smallest and largest share of the image's
            area that a global crop covers.
        local_size (int): Side of the local crops, in pixels.
        local_scale (tuple[float, float]): The same share for local crops.
        num_local (int): Number of local crops.
        ratio (tuple[float, float]): Smallest and largest width / height of a crop box.

    Raises:
        ValueError: If an argument is out of its range, or an image is not (H, W, 3) uint8.
    """

    def __init__(
        self,
        global_size: int = 224,
        global_scale: tuple[float, float] = (0.35, 1.0),
        local_size: int = 96,
        local_scale: tuple[float, float] = (0.05, 0.35),
        num_local: int = 0,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        own = type(self).__name__
        for name, size in (('global_size', global_size), ('local_size', local_size)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f'{own}: {name} must be a whole number >= 1, got {size!r}')
        for name, scale in (('global_scale', global_scale), ('local_scale', local_scale)):
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(
                    f'{own}: {name} must be (smallest, largest) share of the area with '
                    f'0 < smallest <= largest <= 1, got {scale!r}'
                )
        if not isinstance(num_local, int) or num_local < 0:
            raise ValueError(f'{own}: num_local must be a whole number >= 0, got {num_local!r}')
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f'{own}: ratio must be (smallest, largest) width / height with '
                f'0 < smallest <= largest, got {ratio!r}'
            )
        self.global_size = global_size
        self.global_scale = tuple(global_scale)
        self.local_size = local_size
        self.local_scale = tuple(local_scale)
        self.num_local = num_local
        self.ratio = tuple(ratio)

    @property
    def crop_sizes(self) -> list[int]:
        """Side of each crop in pixels, in the order of :meth:`draw_boxes`."""
        return [self.global_size] * 2 + [self.local_size] * self.num_local

    def transform(self, results: dict) -> dict:
        """Add the crops of ``results['img']``; see the class."""
        img = results['img']
        _check_image(type(self).__name__, img, results.get('img_path'))
        return results | self.cut(img, self.draw_boxes(*img.shape[:2]))

    def draw_boxes(self, height: int, width: int) -> list[Box]:
        """Draw the boxes of all crops, the two global ones first, from torch's generator.

        Args:
            height (int): Of the image, in pixels.
            width (int): Of the image, in pixels.
        """
        scales = [self.global_scale] * 2 + [self.local_scale] * self.num_local
        return [draw_box(height, width, scale, self.ratio) for scale in scales]

    def cut(self, img: np.ndarray, boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        """Crop an image and resize the crops.

        Args:
            img (np.ndarray): (H, W, 3) uint8.
            boxes (Sequence[Box]): As from :meth:`draw_boxes`.

        Returns:
            dict[str, Tensor]: The added keys of the class.
        """
        views = {name: _allocate(self.global_size) for name in ('view_1', 'view_2')}
        if self.num_local:
            views['local_views'] = _allocate(self.local_size, self.num_local)
        # Views, not copies: the fast uint8 resize wants channels last on both sides.
        image = np.ascontiguousarray(img).transpose(2, 0, 1)[None]  # (1, 3, H, W)
        places = [views['view_1'][None], views['view_2'][None]]
        if self.num_local:
            places += views['local_views'].split(1)  # (1, 3, h, w) each
        for place, (top, left, height, width) in zip(places, boxes, strict=True):
            crop = image[:, :, top : top + height, left : left + width]
            _resize(torch.from_numpy(crop), place.shape[-2:], False, out=place)
        return views

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(global_size={self.global_size}, '
            f'global_scale={self.global_scale}, local_size={self.local_size}, '
            f'local_scale={self.local_scale}, num_local={self.num_local}, ratio={self.ratio})'
        )


def _allocate(size: int, *num: int) -> torch.Tensor:
    """Return uint8 crops, (*num, 3, size, size), channels last in memory as in an image."""
    return torch.empty(*num, size, size, 3, dtype=torch.uint8).movedim(-1, -3)


def _check_image(name: str, img, path: str | None) -> None:
    origin = f' from {path}' if path else ''
    if not isinstance(img, np.ndarray) or img.ndim != 3 or img.shape[2] != 3:
        raise ValueError(
            f'{name} needs a (H, W, 3) image, got {_describe(img)}{origin}: load with '
            'color_type="color"'
        )
    if img.dtype != np.uint8:
        raise ValueError(
            f'{name} needs a uint8 image, got {_describe(img)}{origin}: put it before anything '
            'that converts to float'
        )


def _describe(img) -> str:
    if isinstance(img, np.ndarray):
        return f'{img.dtype} of shape {img.shape}'
    return f'a {type(img).__name__}'
