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
        global_size: Side of the two global crops, in pixels.
        global_scale: Smallest and largest share of the image's area that a global crop covers.
        local_size: Side of the local crops, in pixels.
        local_scale: The same share for local crops.
        num_local: Number of local crops.
        ratio: Smallest and largest width / height of a crop box.

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
        area = 'two shares of the area, 0 < smallest <= largest <= 1'
        for name, value, is_good, wanted in (
            ('global_size', global_size, _is_whole(global_size, 1), 'a whole number >= 1'),
            ('local_size', local_size, _is_whole(local_size, 1), 'a whole number >= 1'),
            ('num_local', num_local, _is_whole(num_local, 0), 'a whole number >= 0'),
            ('global_scale', global_scale, _is_range(global_scale, 1), area),
            ('local_scale', local_scale, _is_range(local_scale, 1), area),
            ('ratio', ratio, _is_range(ratio), 'two width / height, 0 < smallest <= largest'),
        ):
            if not is_good:
                raise ValueError(f'{type(self).__name__}: {name} must be {wanted}; got {value!r}')
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
        check_image(type(self).__name__, img, results.get('img_path'))
        return results | self.cut(img, self.draw_boxes(*img.shape[:2]))

    def draw_boxes(self, height: int, width: int) -> list[Box]:
        """Draw the boxes of all crops, the two global ones first, from torch's generator.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
        """
        scales = [self.global_scale] * 2 + [self.local_scale] * self.num_local
        return [draw_box(height, width, scale, self.ratio) for scale in scales]

    def cut(self, img: np.ndarray, boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        """Crop an image and resize the crops.

        Args:
            img: (H, W, 3) uint8.
            boxes: As from :meth:`draw_boxes`.

        Returns:
            The added keys of the class.
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
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


def _is_whole(value, smallest: int) -> bool:
    return isinstance(value, int) and value >= smallest


def _allocate(size: int, *num: int) -> torch.Tensor:
    """Return uint8 crops, (*num, 3, size, size), channels last in memory as in an image."""
    return torch.empty(*num, size, size, 3, dtype=torch.uint8).movedim(-1, -3)


def _is_range(pair, largest: float = float('inf')) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= largest


def check_image(owner: str, img, path: str | None) -> None:
    """Raise ValueError unless an image is a uint8 array of shape (H, W, 3).

    Args:
        owner: Name of the transform that asks.
        img: What its input holds.
        path: File of the image, if it has one.
    """
    is_array = isinstance(img, np.ndarray)
    if is_array and img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3:
        return
    found = f'{img.dtype} of shape {img.shape}' if is_array else f'a {type(img).__name__}'
    raise ValueError(
        f'{owner} needs a uint8 image of shape (H, W, 3), got {found}'
        f'{f" from {path}" if path else ""}: load with color_type="color", and put it before '
        'anything that converts to float'
    )
