"""What the workers do per image: draw crops and resize them.

Everything photometric, the flip included, happens in the data preprocessor
(:class:`mmpatchmix.views.ViewAugment`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from mmpatchmix.datasets.crop_boxes import Box, draw_box
from mmpatchmix.registry import TRANSFORMS

SIZE = 'a whole number >= 1, or two of them: (height, width)'
# What torchvision's antialiased bicubic resize of uint8 tensors ends in. Its own way there
# copies, dispatches and allocates, which for ten small crops takes a fifth of the time.
_resize = torch.ops.aten._upsample_bicubic2d_aa.out


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Two global crops and any number of local crops of one image.

    The boxes are torchvision's (``RandomResizedCrop.get_params``), the resize is
    its antialiased bicubic, straight from the decoded array into the crops,
    whose channels come last in memory.

    **Required keys**: ``img``, a uint8 array of shape (H, W, C), any channel order, or a
    float32 one of values from 0 to 255 (:class:`LoadAnyImage`).

    **Added keys**: ``view_1`` and ``view_2``, tensors of the same type and of shape
    (C, height, width); ``local_views``, likewise, of shape (num_local, C, height, width), only
    when ``num_local > 0``.

    Args:
        global_size: Side of the two global crops in pixels, or (height, width).
        global_scale: Smallest and largest share of the image's area that a global crop covers.
        local_size: Side of the local crops in pixels, or (height, width).
        local_scale: The same share for local crops.
        num_local: Number of local crops.
        ratio: Smallest and largest width / height of a crop box, as a multiple of the crop's
            own: (1, 1) never squeezes.

    Raises:
        ValueError: If an argument is out of its range, or an image is of another kind.
    """

    def __init__(
        self,
        global_size: int | Sequence = 224,
        global_scale: tuple[float, float] = (0.35, 1.0),
        local_size: int | Sequence = 96,
        local_scale: tuple[float, float] = (0.05, 0.35),
        num_local: int = 0,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        area = 'two shares of the area, 0 < smallest <= largest <= 1'
        for name, value, is_good, wanted in (
            ('global_size', global_size, is_size(global_size), SIZE),
            ('local_size', local_size, is_size(local_size), SIZE),
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
    def crop_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each crop in pixels, in the order of :meth:`draw_boxes`."""
        return [to_pair(self.global_size)] * 2 + [to_pair(self.local_size)] * self.num_local

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
        return [
            draw_box(height, width, scale, tuple(each * (w / h) for each in self.ratio))
            for scale, (h, w) in zip(scales, self.crop_sizes, strict=True)
        ]

    def cut(self, img: np.ndarray, boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        """Crop an image and resize the crops.

        Args:
            img: (H, W, C) uint8 or float32.
            boxes: As from :meth:`draw_boxes`.

        Returns:
            The added keys of the class.
        """
        # Views, not copies: the fast uint8 resize wants channels last on both sides.
        image = torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)[None]  # (1, C, H, W)
        size = to_pair(self.global_size)
        views = {name: _allocate(image, size) for name in ('view_1', 'view_2')}
        places = [views['view_1'][None], views['view_2'][None]]
        if self.num_local:
            views['local_views'] = _allocate(image, to_pair(self.local_size), self.num_local)
            places += views['local_views'].split(1)  # (1, C, h, w) each
        for place, (top, left, height, width) in zip(places, boxes, strict=True):
            crop = image[:, :, top : top + height, left : left + width]
            resize(crop, place)
        return views

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


def _is_whole(value, smallest: int) -> bool:
    return isinstance(value, int) and value >= smallest


def is_size(value) -> bool:
    """Tell whether a value is a side in pixels, or a pair of them."""
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(_is_whole(each, 1) for each in value)
    return _is_whole(value, 1)


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size as :class:`MultiCrop` takes it."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resize(image: torch.Tensor, out: torch.Tensor) -> None:
    """Resize to the size of ``out``: antialiased bicubic, overshoot cut to 0 to 255.

    Args:
        image: (1, C, H, W) uint8 or float32, the channels last in memory.
        out: (1, C, h, w) of the same type, likewise; written to.
    """
    _resize(image, out.shape[-2:], False, out=out)
    if out.is_floating_point():
        out.clamp_(0, 255)  # eight bits do so by themselves


def _allocate(image: torch.Tensor, size: tuple[int, int], *num: int) -> torch.Tensor:
    """Return crops, (*num, C, *size), channels last in memory as in an image."""
    return image.new_empty(*num, *size, image.shape[1]).movedim(-1, -3)


def _is_range(pair, largest: float = float('inf')) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= largest


def check_image(owner: str, img, path: str | None) -> None:
    """Raise ValueError unless an image is (H, W, C) of uint8, or of float32 from 0 to 255.

    Args:
        owner: Name of the transform that asks.
        img: What its input holds.
        path: File of the image, if it has one.
    """
    is_array = isinstance(img, np.ndarray)
    if is_array and img.ndim == 3 and img.dtype in (np.uint8, np.float32):
        return
    found = f'{img.dtype} of shape {img.shape}' if is_array else f'a {type(img).__name__}'
    raise ValueError(
        f'{owner} needs a uint8 or float32 image of shape (H, W, C), got {found}'
        f'{f" from {path}" if path else ""}: load with mmpatchmix.LoadAnyImage, or with '
        'color_type="color"'
    )
